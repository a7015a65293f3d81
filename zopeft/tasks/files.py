"""Files: rows from jsonl, json, csv, tsv and parquet files, with errors that say where."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.reading import parse_json

GZIP = ".gz"


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
    """

    name: str
    rows: list[dict[str, Any]]
    lines: list[int] | None
    columns: tuple[str, ...]
    parts: tuple[Source, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    taken: tuple[Source, Sequence[int]] | None = None

    def part(self, name: str, chosen: Sequence[int]) -> Source:
        """Returns some of the rows as a source of their own."""
        rows = [self.rows[index] for index in chosen]
        return Source(name, rows, None, self.columns, (), self.labels, (self, chosen))

    def place(self, index: int) -> str:
        """Returns where row `index` stands, for messages."""
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
        if not isinstance(row, dict):
            where = f"{path}, line {lines[index]}" if lines else f"{path}, row {index + 1}"
            raise input_error(where, "a JSON object is needed", f"{row!r:.60}")
    columns = dict.fromkeys(key for row in rows for key in row)
    return Source(str(path), rows, lines, tuple(columns))


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix.lower() == GZIP else path.open("rb")


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file with their numbers, without a byte-order mark."""
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:4]:
                    do = "save it as UTF-8"
                    raise input_error(str(path), "unreadable file: its text is UTF-16", do=do)
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise input_error(
                    f"{path}, line {number}",
                    f"unreadable text (byte {raw[error.start]:#04x} is not UTF-8)",
                    do="save the file as UTF-8",
                ) from error


def _whole(value: Any, text: str, path: Path, line: int = 0) -> Any:
    r"""Returns what was read of a text, unless it has half a character (``\\ud83d`` alone)."""
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            where = f"{path}, line {line}" if line else str(path)
            what = "half of a character written as two (a lone surrogate)"
            raise input_error(where, what, do="write the text as UTF-8") from None
    return value


def _jsonl(path: Path) -> Source:
    rows, lines = [], []
    for number, line in _text_lines(path):
        if not line.strip():
            continue
        rows.append(_whole(parse_json(line, f"{path}, line {number}"), line, path, number))
        lines.append(number)
    return _source(path, rows, lines)


def _json(path: Path) -> Source:
    content = "".join(line for _, line in _text_lines(path))
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line under the name of the other kind
            return _jsonl(path)
        raise input_error(f"{path}, line {error.lineno}", f"unreadable JSON ({error})") from error
    except (ValueError, RecursionError):
        value = parse_json(content, str(path))
    _whole(value, content, path)
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
    rows: list[dict[str, Any]] = []
    lines = []
    before = csv.field_size_limit(2**31 - 1)
    try:
        # Line ends inside quotes are part of the text, so that they are left as they are.
        text = (line for _, line in _text_lines(path))
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        names = reader.fieldnames or ()
        twice = [name for name in names if list(names).count(name) > 1]
        if twice:
            raise input_error(f"{path}, line 1", "two columns of one name", twice[0])
        for row in reader:
            if None in row or None in row.values():
                raise input_error(
                    f"{path}, line {reader.line_num}", f"not the {len(names)} fields of the header"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        # A quote that is never closed swallows the rest: the row begins after the last good one.
        where = f"{path}, line {(lines[-1] if lines else 1) + 1}"
        raise input_error(where, f"unreadable file ({error})", do="check its quotes") from error
    finally:
        csv.field_size_limit(before)
    return Source(str(path), rows, lines, tuple(names))


def _tsv(path: Path) -> Source:
    return _csv(path, "\t")


def _parquet(path: Path) -> Source:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise input_error(
            str(path),
            "parquet needs pyarrow, which is not installed",
            do="run `pip install datasets`",
        ) from error
    try:
        with _opened(path) as file:
            table = parquet.read_table(io.BytesIO(file.read()))
        rows = table.to_pylist()
    except Exception as error:
        raise input_error(str(path), f"unreadable parquet ({str(error)[:120]})") from error
    labels = _class_names((table.schema.metadata or {}).get(b"huggingface"))
    columns = tuple(table.column_names)
    return Source(str(path), rows, None, columns, labels=labels)


def _class_names(note: bytes | None) -> dict[str, tuple[str, ...]]:
    """The names of classes in what ``datasets`` writes into a parquet file of its columns."""
    try:
        features = json.loads(note or b"{}")["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


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
