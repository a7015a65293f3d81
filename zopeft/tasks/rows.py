"""Rows: a task's data from a local folder, the embedded samples or the hub."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.tasks.catalog import TASKS
from zopeft.tasks.files import Source
from zopeft.tasks.own import HELD_OUT, open_file
from zopeft.tasks.places import embedded_source, folder_source, hub_source
from zopeft.tasks.streamed import Streams
from zopeft.tasks.task import RowError, Task

SPLITS = ("train", "validation", "test")
"""The usual names of splits."""


class Rows(list[dict[str, Any]]):
    """Rows that know where they come from.

    Args:
        rows: The rows.
        source: The source that they were drawn from.
        chosen: Which of its rows they are, in order.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], source: Source, chosen: list[int]) -> None:
        super().__init__(rows)
        self.source, self.chosen = source, chosen

    @property
    def available(self) -> int:
        """How many rows there are to draw from."""
        return len(self.source.rows)

    @property
    def streams(self) -> Streams | None:
        """What the rows are the first of, which is read as it is needed; None for all there are."""
        return self.source.streams

    def place(self, index: int) -> str:
        """Returns where row `index` stands, for messages."""
        return self.source.place(self.chosen[index])


def load_rows(
    task: Task,
    split: str,
    data: str | Path | None = None,
    embedded: bool = False,
    limit: int | None = None,
    seed: int | None = 0,
) -> Rows:
    """Loads and checks the rows of one split.

    Args:
        task: The task; its columns and labels are checked on every row returned.
        split: "train", "validation", "test", or what the data has.
        data: A folder with ``<split>.jsonl`` (or json, csv, tsv, parquet, each also
            compressed as ``.gz``) in the hub's columns, or one such file, of which a tenth is
            held out for validation. It goes before `embedded`, and so does a custom task's
            own data.
        embedded: Take the samples inside the package.
        limit: Most rows; they are drawn without replacement by `seed`, and a smaller
            limit draws the beginning of the same sequence. None: all, in file order.
        seed: Seed of the draw; None takes the first rows. No global generator is used or changed.

    Returns:
        Rows as dicts; a list.

    Raises:
        InputError: No such folder or split, unreadable file, no rows, missing columns, a
            label out of range, or the hub can't be reached.
    """
    if limit is not None and limit < 1:
        raise input_error("limit", "at least 1 row is needed", limit)
    data = task.data if data is None else data
    if task.own is not None:
        source = task.own.source(split)
    elif data is not None:
        path = Path(data).expanduser()
        source = (
            open_file(path, HELD_OUT).source(split)
            if path.is_file()
            else folder_source(path, split)
        )
    elif embedded and (task.hub is None or task.name in TASKS):
        source = embedded_source(task, split)
    else:
        source = hub_source(task, split)
    if not source.rows:
        raise input_error(source.name, "no rows in it", do="give a file with rows")
    _check_columns(task, source)
    order = list(range(len(source.rows)))
    if limit is not None:
        if seed is not None:
            random.Random(seed).shuffle(order)
        order = order[:limit]
    for index in order:
        try:
            task.example(source.rows[index])
        except RowError as error:
            raise InputError(f"{source.place(index)}: {error}") from error
    return Rows((source.rows[index] for index in order), source, order)


def _check_columns(task: Task, source: Source) -> None:
    missing = task.missing(source.columns)
    if missing:
        names = ", ".join("'" + column.replace("|", "' or '") + "'" for column in missing)
        raise input_error(
            source.name,
            f"column{'s' if len(missing) > 1 else ''} {names} missing",
            ", ".join(source.columns),
            f"{task.name} needs {task.needs}",
        )
