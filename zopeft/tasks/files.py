"""Files: rows from jsonl, json, csv, tsv and parquet files, with errors that say where."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, input_error
from zopeft.reading import parse_json, whole
from zopeft.tasks.row_files import (
    GZIP,
    checked,
    class_names,
    csv_rows,
    json_lines,
    opened,
    parquet,
    text_lines,
)
from zopeft.tasks.unpacking import check_rows

if TYPE_CHECKING:
    from zopeft.tasks.streamed import Streams


@dataclass(frozen=True)
class Source:
    """Rows and where they came from.

    Attributes:
        name: The file or hub id, for messages.
        rows: The rows, in their order there.
        lines: Each row's line in the file, or None where rows have no lines.
        columns: The names of the columns.
        parts: The files that the rows were put together from, if there are several.
        labels: Names of the classes of columns that hold them by number, where the data has
            them: column to names.
        taken: Where the rows are some of another source's: which.
        places: Where each row stands, where that is known beforehand.
        streams: Where the rows are but the first of more, which are read as they are needed: what
            reads them; None where they are all.
    """

    name: str
    rows: list[dict[str, Any]]
    lines: list[int] | None
    columns: tuple[str, ...]
    parts: tuple[Source, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    taken: tuple[Source, Sequence[int]] | None = None
    places: Sequence[str] = ()
    streams: Streams | None = None

    def part(self, name: str, chosen: Sequence[int]) -> Source:
        """Returns some of the rows as a source of their own."""
        rows = [self.rows[index] for index in chosen]
        return Source(name, rows, None, self.columns, (), self.labels, (self, chosen))

    def place(self, index: int) -> str:
        """Returns where row `index` stands, for messages."""
        if self.places:
            return self.places[index]
        if self.taken is not None:
            return self.taken[0].place(self.taken[1][index])
        for part in self.parts:
            if index < len(part.rows):
                return part.place(index)
            index -= len(part.rows)
        if self.lines is not None:
            return f"{self.name}, line {self.lines[index]}"
        return f"{self.name}, row {index + 1}"


def joined(name: str, sources: Sequence[Source]) -> Source:
    """Returns the rows of several files, one after the other."""
    rows = [row for source in sources for row in source.rows]
    columns = dict.fromkeys(column for source in sources for column in source.columns)
    labels = {column: names for source in sources for column, names in source.labels.items()}
    return Source(name, rows, None, tuple(columns), tuple(sources), labels)


def _source(path: Path, rows: list[Any], lines: list[int] | None) -> Source:
    for index, row in enumerate(rows):
        checked(row, f"{path}, line {lines[index]}" if lines else f"{path}, row {index + 1}")
    columns = dict.fromkeys(key for row in rows for key in row)
    return Source(str(path), rows, lines, tuple(columns))


def _jsonl(path: Path) -> Source:
    pairs = list(json_lines(path))
    return _source(path, [row for _, row in pairs], [line for line, _ in pairs])


def _json(path: Path) -> Source:
    content = "".join(line for _, line in text_lines(path))
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line under the name of the other kind
            return _jsonl(path)
        raise input_error(f"{path}, line {error.lineno}", f"unreadable JSON ({error})") from error
    except (ValueError, RecursionError):
        value = parse_json(content, str(path))
    whole(value, str(path))
    if isinstance(value, dict):
        value = _of_object(path, value)
    if not isinstance(value, list):
        raise input_error(str(path), "a list of JSON objects is needed", type(value).__name__)
    return _source(path, value, None)


def _of_object(path: Path, value: dict[str, Any]) -> list[Any]:
    """The rows of one JSON object: under "data", as columns, or the object itself."""
    data = value.get("data")
    if isinstance(data, list) and all(isinstance(one, dict) for one in data):
        return data
    if value and all(isinstance(column, list) for column in value.values()):
        sizes = {name: len(column) for name, column in value.items()}
        if len(set(sizes.values())) > 1:
            got = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise input_error(str(path), "its columns have different lengths", got)
        return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if len(value) > 1 and all(isinstance(column, dict) for column in value.values()):
        raise input_error(
            str(path),
            "an object of objects is no list of rows",
            ", ".join(list(value)[:3]),
            "write a list of objects (pandas: to_json(orient='records'))",
        )
    return [value]


def _csv(path: Path, delimiter: str = ",") -> Source:
    names, found = csv_rows(path, delimiter)
    pairs = list(found)
    rows, lines = [row for _, row in pairs], [line for line, _ in pairs]
    return Source(str(path), rows, lines, tuple(names))


def _tsv(path: Path) -> Source:
    return _csv(path, "\t")


def _parquet(path: Path) -> Source:
    reader = parquet(path)
    try:
        with opened(path) as file:
            content = reader.ParquetFile(io.BytesIO(file.read()))
        check_rows(path, content.metadata.num_rows)
        table = content.read()
        rows = table.to_pylist()
    except InputError:
        raise
    except Exception as error:
        raise input_error(str(path), f"unreadable parquet ({str(error)[:120]})") from error
    labels = class_names((table.schema.metadata or {}).get(b"huggingface"))
    return Source(str(path), rows, None, tuple(table.column_names), labels=labels)


READERS: dict[str, Callable[[Path], Source]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
"""File suffix, in lower case, to its reader; each may be followed by ``.gz``."""


def kind_of(path: Path) -> str:
    """Returns which of `READERS` reads a file, by its name in any case; "" if none does."""
    name = path.name.lower().removesuffix(GZIP)
    return next((suffix for suffix in READERS if name.endswith(suffix)), "")


def read_file(path: Path) -> Source:
    """Returns the rows of one file.

    Raises:
        InputError: The file can't be read; the line is named where it has lines.
    """
    try:
        return READERS[kind_of(path)](path)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise input_error(str(path), f"unreadable file ({error})") from error
