"""Row files: the rows of a file one after the other, each with where it stands.

Nothing but the row in hand is held: files that do not fit in memory are read so
(`zopeft.tasks.streamed`), and files that do are read into lists of them (`zopeft.tasks.files`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from zopeft.errors import InputError, input_error
from zopeft.reading import parse_json
from zopeft.tasks.unpacking import unpacked

GZIP = ".gz"
SHORT, BLANK = 2, 1_000_000
"""Bytes of a line that is looked at for being blank, and how many such lines there may be."""
PORTION = 64
"""Rows that are read of a parquet file at a time."""


class Placed(NamedTuple):
    """A row and where it stands, for messages."""

    row: dict[str, Any]
    place: str


def opened(path: Path) -> io.BufferedReader:
    """Returns a file open for reading, unpacked."""
    return unpacked(path) if path.suffix.lower() == GZIP else path.open("rb")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a UTF-8 file with their numbers, without a byte-order mark.

    Raises:
        InputError: A line is no UTF-8, or more than `BLANK` of them are blank.
    """
    blank = 0
    with opened(path) as file:
        for number, raw in enumerate(file, start=1):
            if len(raw) <= SHORT and not raw.strip():
                blank += 1
                if blank > BLANK:
                    raise input_error(str(path), f"has more than {BLANK:,} blank lines")
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


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the values of a file with one JSON value a line, each with its line.

    Raises:
        InputError: A line is no JSON.
    """
    for number, line in text_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, parse_json(line, where)


def csv_rows(path: Path, delimiter: str) -> tuple[Sequence[str], Iterator[tuple[int, Any]]]:
    """Returns the columns of a table in text, and its rows, each with its line.

    Raises:
        InputError: The header is none; or, of the rows, one has other fields or open quotes.
    """
    # Line ends inside quotes are part of the text, so that they are left as they are.
    text = (line for _, line in text_lines(path))
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    with _any_length(), _told(path, 1):
        names = list(reader.fieldnames or ())
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise input_error(f"{path}, line 1", "two columns of one name", twice[0])
    return names, _csv(path, reader)


def _csv(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, Any]]:
    last = 1
    while True:
        # A quote that is never closed swallows the rest: the row begins after the last good one.
        with _any_length(), _told(path, last + 1):
            row: dict[Any, Any] | None = next(reader, None)
        if row is None:
            return
        last = reader.line_num
        if None in row or None in row.values():
            what = f"not the {len(reader.fieldnames or ())} fields of the header"
            raise input_error(f"{path}, line {last}", what)
        yield last, row


@contextmanager
def _told(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        what = f"unreadable file ({error})"
        raise input_error(f"{path}, line {line}", what, do="check its quotes") from error


@contextmanager
def _any_length() -> Iterator[None]:
    """Inside, a field may have any length; the limit is the process's own."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet(path: Path) -> Any:
    """Returns pyarrow's module for parquet files.

    Raises:
        InputError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise input_error(
            str(path),
            "parquet needs pyarrow, which is not installed",
            do="run `pip install datasets`",
        ) from error
    return pyarrow.parquet


def parquet_rows(path: Path) -> Iterator[Any]:
    """Yields the rows of a parquet file, of which `PORTION` are read at a time.

    Raises:
        InputError: It cannot be read.
    """
    reader = parquet(path)
    try:
        with opened(path) as file:
            for portion in reader.ParquetFile(file).iter_batches(PORTION):
                yield from portion.to_pylist()
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        raise input_error(str(path), f"unreadable parquet ({str(error)[:120]})") from error


def class_names(note: bytes | None) -> dict[str, tuple[str, ...]]:
    """Returns the names of classes in what ``datasets`` writes into a parquet file.

    Args:
        note: The file's note on its columns; None for none.

    Returns:
        Column to names.
    """
    try:
        features = parse_json(note or b"{}", "class names")["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (InputError, KeyError, TypeError, AttributeError):
        return {}


def checked(row: Any, where: str) -> dict[str, Any]:
    """Returns a row that is an object.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(row, dict):
        raise input_error(where, "a JSON object is needed", f"{row!r:.60}")
    return row
