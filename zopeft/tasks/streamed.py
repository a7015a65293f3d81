"""Streamed: rows of files or data sets that are read as they are needed.

Of each there is its head, the first rows, which are held: what has to look at rows before a run
begins (columns, classes, counts, token frequencies) looks at these.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error, run_error
from zopeft.tasks.files import Source, kind_of
from zopeft.tasks.json_list import json_rows
from zopeft.tasks.row_files import (
    Placed,
    checked,
    class_names,
    csv_rows,
    json_lines,
    opened,
    parquet,
    parquet_rows,
)

BUFFER = 1000
"""Rows that are held, from which the next one is drawn."""
SCORED = 500
"""Rows to score on that are taken from the beginning of a split, where nothing is said."""


@dataclass(frozen=True)
class Streaming:
    """How rows are streamed.

    Attributes:
        buffer: Rows that are held, from which the next one is drawn; of a mixture, all parts
            have their share of them.
        seed: Seed of the draws.
        scored: Most rows to score on.

    Raises:
        InputError: The buffer has no room for a row.
    """

    buffer: int = BUFFER
    seed: int = 0
    scored: int = SCORED

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise input_error("shuffle_buffer", "must be at least 1", self.buffer)

    def shared(self, parts: int) -> Streaming:
        """Returns what one of several parts has of it."""
        return replace(self, buffer=max(1, self.buffer // parts))

    @property
    def for_scoring(self) -> Streaming:
        """What reads rows to score on: so many, and no more."""
        return replace(self, buffer=self.scored)


@dataclass(frozen=True)
class Streamed:
    """One file, split or data set, read from its beginning as often as it is asked for.

    Attributes:
        name: What it is called.
        begin: Begins to read it.
        left_out: Numbers of rows that are not trained on, since they are scored on.
        change: What is made of a row, before it is anything else.
        share: Its share of a mixture.
        pieces: Whether a row may become several examples.
    """

    name: str
    begin: Callable[[], Iterator[Placed]]
    left_out: frozenset[int] = frozenset()
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict
    share: float = 1.0
    pieces: bool = False

    def rows(self) -> Iterator[Placed]:
        """Yields the rows in their order.

        Raises:
            InputError: The file, or a row of it, cannot be read.
        """
        for number, (row, place) in enumerate(self.begin()):
            if number not in self.left_out:
                yield Placed(self.change(row), place)

    def changed(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Streamed:
        """Returns the same with rows that are changed once more."""
        before = self.change
        return replace(self, change=lambda row: change(before(row)))


@dataclass(frozen=True)
class Streams:
    """What a run's rows are streamed from.

    Attributes:
        parts: One, or the parts of a mixture.
        how: How they are streamed.
    """

    parts: tuple[Streamed, ...]
    how: Streaming

    def each(self, change: Callable[[Streamed], Streamed]) -> Streams:
        """Returns the same with other parts in place of its own."""
        return replace(self, parts=tuple(change(part) for part in self.parts))

    @property
    def told(self) -> str:
        """What of it the user is told."""
        size = f"{self.how.buffer:,} held rows"
        return f"read as they are needed, in an order drawn from {size}"

    def mark(self, head: Iterable[str]) -> str:
        """Returns what tells these streams from others, given how the first rows are encoded."""
        digest = hashlib.sha256("\n".join(head).encode()).hexdigest()[:16]
        shares = " ".join(f"{part.share:.6g}" for part in self.parts)
        return f"{self.how.buffer} {self.how.seed} {shares} {digest}"


def head(streamed: Streamed, how: Streaming, columns: Sequence[str] = (), **facts: Any) -> Source:
    """Returns the first rows of a stream as a source, with the stream behind them.

    Args:
        streamed: What is read.
        how: How.
        columns: The names of the columns, where they are known.
        **facts: Further fields of the source.

    Raises:
        InputError: The rows cannot be read.
    """
    placed = list(islice(streamed.rows(), how.buffer))
    known = tuple(columns) or tuple(dict.fromkeys(key for one in placed for key in one.row))
    rows, places = [one.row for one in placed], [one.place for one in placed]
    streams = Streams((streamed,), how)
    return Source(streamed.name, rows, None, known, places=places, streams=streams, **facts)


def without(source: Source, part: Source, held: Sequence[int]) -> Source:
    """Returns a part of a source's head, with the rows behind it, less those that are held out."""
    if source.streams is None:
        return part
    out = frozenset(held)
    return replace(part, streams=source.streams.each(lambda one: replace(one, left_out=out)))


def file_head(name: str, files: Sequence[Path], how: Streaming) -> Source:
    """Returns the head of one file, or of several that are read one after the other.

    Raises:
        InputError: One of them cannot be read.
    """
    columns: dict[str, None] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for path in files:
        known, names = _header(path)
        columns |= dict.fromkeys(known)
        labels |= names
    whole = Streamed(name, partial(_files, tuple(files)))
    return head(whole, how, tuple(columns), labels=labels)


def table_head(name: str, table: Any, how: Streaming) -> Source:
    """Returns the head of a table of ``datasets``, which may itself be read as it is needed.

    Raises:
        InputError: It cannot be read.
    """
    features = getattr(table, "features", None) or {}
    labels = {
        column: tuple(feature.names)
        for column, feature in features.items()
        if type(feature).__name__ == "ClassLabel"
    }
    streamed = Streamed(name, partial(_table, name, table))
    return head(streamed, how, tuple(getattr(table, "column_names", None) or ()), labels=labels)


def _files(files: Sequence[Path]) -> Iterator[Placed]:
    for path in files:
        try:
            for place, row in _placed(path):
                yield Placed(checked(row, place), place)
        except InputError:
            raise
        except (OSError, EOFError, zlib.error) as error:
            raise input_error(str(path), f"unreadable file ({error})") from error


def _placed(path: Path) -> Iterator[tuple[str, Any]]:
    kind = kind_of(path)
    if kind == ".json":
        yield from json_rows(path)
    elif kind == ".parquet":
        for number, row in enumerate(parquet_rows(path), 1):
            yield f"{path}, row {number}", row
    else:
        rows = json_lines(path) if kind == ".jsonl" else csv_rows(path, _DELIMITERS[kind])[1]
        for line, row in rows:
            yield f"{path}, line {line}", row


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _header(path: Path) -> tuple[Sequence[str], Mapping[str, tuple[str, ...]]]:
    """The columns and names of classes that a file tells of before its rows."""
    kind = kind_of(path)
    try:
        if kind in _DELIMITERS:
            return csv_rows(path, _DELIMITERS[kind])[0], {}
        if kind == ".parquet":
            with opened(path) as file:
                schema = parquet(path).read_schema(file)
            return schema.names, class_names((schema.metadata or {}).get(b"huggingface"))
    except InputError:
        raise
    except Exception as error:
        raise input_error(str(path), f"unreadable file ({str(error)[:120]})") from error
    return (), {}


def _table(name: str, table: Any) -> Iterator[Placed]:
    rows, number = iter(table), 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:120]
            do = "go on with --resume when it can be read again"
            what = f"the data set cannot be read on ({type(error).__name__}: {why})"
            raise run_error(f"{name}, row {number + 1}", what, do=do) from error
        if row is None:
            return
        number += 1
        yield Placed(dict(row), f"{name}, row {number}")
