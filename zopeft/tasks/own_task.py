"""Own task: a task made of the user's own data, by what its columns tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zopeft.tasks.files import Source
from zopeft.tasks.kinds import recognise
from zopeft.tasks.kinds.kind import Kind, Wishes, column_of
from zopeft.tasks.own import OwnData
from zopeft.tasks.row_files import GZIP
from zopeft.tasks.task import Task

if TYPE_CHECKING:
    from zopeft.tasks.shares import Share


@dataclass(frozen=True)
class Own:
    """What a task was made of.

    Attributes:
        data: The rows.
        kind: What they are.
        labels: The options of a classification.
        told: What the user should know beside that; "" for nothing.
        turns: Whether rows go into a chat template: "must", or "may" where there is one.
        shares: Of a mixture, what is taken of each part.
    """

    data: OwnData
    kind: Kind
    labels: tuple[str, ...] = ()
    told: str = ""
    turns: Literal["no", "may", "must"] = "no"
    shares: tuple[Share, ...] = ()

    def source(self, split: str) -> Source:
        """Returns the rows of "train" or "validation"."""
        return self.data.source(split)


def own_task(
    data: OwnData,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    wishes: Wishes | None = None,
    columns_before: Mapping[str, str] | None = None,
    wishes_before: Wishes | None = None,
) -> Task:
    """Returns the task of own data.

    Args:
        data: The rows.
        kind: What they are, an entry of `zopeft.tasks.kinds.KINDS`; None asks the columns.
        columns: Known name to the name in the data, for columns of other names.
        wishes: What else the user wants.
        columns_before: The same of an earlier use of such data, where they are there.
        wishes_before: The same, where the kind heeds them and nothing else is asked for.

    Raises:
        InputError: The columns tell of no kind or of several, a wish is not for this kind, or
            the labels are no classes.
    """
    wishes = wishes or Wishes()
    earlier = columns_before or {}
    if not columns and all(name in data.train.columns for name in earlier.values()):
        columns = earlier
    data = data.renamed(columns or {})
    found = recognise(data.train.columns, data.name, kind)
    found.check(wishes)
    if wishes_before is not None:
        wishes = wishes.filled(wishes_before, found.wishes)
    if data.train.streams is not None and found.name == "text":
        streams = data.train.streams.each(lambda one: replace(one, pieces=True))
        data = replace(data, train=replace(data.train, streams=streams))
    made = found.make(data.train.columns, (data.train, data.validation), wishes)
    return Task(
        name=name_of(data.name),
        columns=tuple(str(column_of(c, data.train.columns)) for c in found.columns),
        kind=made.kind,
        metric=made.metric,
        loss="answer",
        build=made.build,
        max_new_tokens=made.max_new_tokens,
        stop=made.stop,
        own=Own(data, found, made.labels, made.told, made.turns),
    )


def name_of(data: str) -> str:
    """Returns what own data is called: its file, folder or data set, without what is around."""
    path = Path(data).expanduser()
    name = path.resolve().name if path.exists() else data.rpartition("/")[2].replace(":", "-")
    return name.removesuffix(GZIP).partition(".")[0] or "data"
