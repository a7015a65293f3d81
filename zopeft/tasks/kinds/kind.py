"""Kind: what a row of own data is, and the task that it makes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from zopeft.errors import input_error
from zopeft.tasks.files import Source
from zopeft.tasks.task import AnyExample, Row, RowError
from zopeft.tasks.values import is_hole, words


@dataclass(frozen=True)
class Wishes:
    """What the user asks of own data beside its place.

    Attributes:
        labels: Names of the classes, in the order of their numbers.
        system: A system prompt, for rows without one.
        metric: How answers are scored; None takes the kind's own.
        stop: Text that ends an answer; None takes the end token.
        max_new_tokens: Longest generated answer in tokens; None takes the kind's own.
        template_options: Further variables for the chat template.
    """

    labels: tuple[str, ...] = ()
    system: str | None = None
    metric: str | None = None
    stop: str | None = None
    max_new_tokens: int | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, other: Wishes, names: Sequence[str]) -> Wishes:
        """Returns the wishes with those of another where there is none, of the names given."""
        free = [name for name in names if name not in self.given]
        return replace(self, **{name: getattr(other, name) for name in free})

    @property
    def given(self) -> list[str]:
        """The names of those that are asked for."""
        usual = Wishes()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]


@dataclass(frozen=True)
class Made:
    """What a kind makes of rows; see `zopeft.tasks.task.Task` for the fields.

    Attributes:
        build: Row to example.
        kind: How it is scored.
        metric: Its metric.
        stop: Text that ends a generated answer.
        max_new_tokens: Longest generated answer in tokens.
        told: What the user should know of it, beside the kind; "" for nothing.
        labels: The options of a classification.
        turns: Whether rows go into a chat template: "must", or "may" where there is one.
    """

    build: Callable[[Row], AnyExample]
    kind: Literal["choice", "answer", "text", "prompt"]
    metric: Literal["accuracy", "f1", "perplexity", "reward"]
    stop: str | None = None
    max_new_tokens: int = 50
    told: str = ""
    labels: tuple[str, ...] = ()
    turns: Literal["no", "may", "must"] = "no"


@dataclass(frozen=True)
class Kind:
    """A kind of own data.

    Attributes:
        name: Its name in the registry.
        columns: The columns that a row must have; where several are accepted they stand in
            one string, as in "output|response".
        shape: The columns as a user reads them.
        wishes: The fields of `Wishes` that it heeds.
        metrics: The metrics that it can be scored by; the first is its own.
        make: Called with the names of the columns, the sources to train on and to score on,
            and the wishes.
    """

    name: str
    columns: tuple[str, ...]
    shape: str
    wishes: tuple[str, ...]
    metrics: tuple[str, ...]
    make: Callable[[Collection[str], Sequence[Source], Wishes], Made]

    @property
    def chats(self) -> bool:
        """Whether rows may be turns in a chat template."""
        return "template_options" in self.wishes

    def missing(self, columns: Collection[str]) -> list[str]:
        """Returns the required columns that are not among `columns`."""
        return [c for c in self.columns if column_of(c, columns) is None]

    def check(self, wishes: Wishes) -> None:
        """Refuses wishes that the kind cannot heed.

        Raises:
            InputError: There is one.
        """
        for name in wishes.given:
            if name not in self.wishes:
                do = "leave it out" + (
                    f"; for {self.name} there are: "
                    + ", ".join(f"data.{wish}" for wish in self.wishes)
                    if self.wishes
                    else ""
                )
                got = str(getattr(wishes, name))
                raise input_error(f"data.{name}", f"goes with other data than {self.name}", got, do)
        if wishes.metric is not None and wishes.metric not in self.metrics:
            what = f"must be {' or '.join(self.metrics)} for {self.name}"
            raise input_error("data.metric", what, wishes.metric)


def column_of(accepted: str, columns: Collection[str]) -> str | None:
    """Returns the first of the accepted columns ("output|response") that is there."""
    return next((name for name in accepted.split("|") if name in columns), None)


def cell(row: Row, column: str, empty: bool = False) -> str:
    """Returns a cell's text as it stands, but for line ends, which are single newlines.

    Args:
        row: The row.
        column: Its column.
        empty: Whether it may be empty, or not be there.

    Raises:
        RowError: It may not, and is; or it is no single value.
    """
    value = row.get(column)
    if empty and is_hole(value):
        return ""
    text = words(value, column).replace("\r\n", "\n")
    if not empty and not text.strip():
        raise RowError(f"column {column!r} is empty")
    return text


GENERATED = {"f1": 128, "accuracy": 128, "perplexity": 0}
"""Longest generated answer in tokens of kinds whose answers may be long, by metric."""


def free(
    wishes: Wishes,
    build: Callable[[Row], AnyExample],
    turns: Literal["no", "may", "must"],
    told: str = "",
) -> Made:
    """Returns what a kind with answers of any length makes: scored by loss, unless asked."""
    metric: Any = wishes.metric or "perplexity"
    return Made(
        build=build,
        kind="text" if metric == "perplexity" else "answer",
        metric=metric,
        stop=wishes.stop,
        max_new_tokens=wishes.max_new_tokens or GENERATED[metric] or 1,
        told=told,
        turns=turns,
    )
