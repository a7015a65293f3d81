"""Files: rows from jsonl, json, csv and parquet files, with errors that say where."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import input_error


@dataclass(frozen=True)
class Source:
    """Rows and where they came from.

    Attributes:
        name: The file or hub id, for messages.
        rows: The rows, in their order there.
        lines: Each row's line in the file, or None where rows have no lines.
        columns: The names of the columns.
    """

    name: str
    rows: list[dict[str, Any]]
    lines: list[int] | None
    columns: tuple[str, ...]

    def place(self, index: int) -> str:
        """Returns where row `index` stands, for messages."""
        if self.lines is not None:
            return f"{self.name}, line {self.lines[index]}"
        return f"{self.name}, row {index + 1}"


def _source(path: Path, rows: list[Any], lines: list[int] | None) -> Source:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            where = f"{path}, line {lines[index]}" if lines else f"{path}, row {index + 1}"
            raise input_error(where, "a JSON object is needed", f"{row!r:.60}")
    columns = dict.fromkeys(key for row in rows for key in row)
    return Source(str(path), rows, lines, tuple(columns))


def _jsonl(path: Path) -> Source:
    rows, lines = [], []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise input_error(
                    f"{path}, line {number}", f"unreadable JSON ({error})", line.strip()[:60]
                ) from error
            lines.append(number)
    return _source(path, rows, lines)


def _json(path: Path) -> Source:
    content = path.read_text(encoding="utf-8")
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if "Extra data" in error.msg:  # one object a line under the name of the other kind
            return _jsonl(path)
        raise input_error(f"{path}, line {error.lineno}", f"unreadable JSON ({error})") from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise input_error(str(path), "a list of JSON objects is needed", type(value).__name__)
    return _source(path, value, None)


def _csv(path: Path) -> Source:
    rows, lines = [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise input_error(
                    f"{path}, line {reader.line_num}",
                    f"not the {len(reader.fieldnames or ())} fields of the header",
                )
            rows.append(row)
            lines.append(reader.line_num)
    return _source(path, rows, lines)


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
        table = parquet.read_table(path)
    except Exception as error:
        raise input_error(str(path), f"unreadable parquet ({str(error)[:120]})") from error
    return Source(str(path), table.to_pylist(), None, tuple(table.column_names))


READERS: dict[str, Callable[[Path], Source]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""File suffix to its reader."""


def read_file(path: Path) -> Source:
    """Returns the rows of one file.

    Raises:
        InputError: The file can't be read; the line is named where it has lines.
    """
    try:
        return READERS[path.suffix](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise input_error(str(path), f"unreadable file ({error})") from error


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """Returns the splits that a folder holds: name to its files, in order.

    ``train.jsonl``, ``train-00000-of-00002.parquet`` and the same under ``data/`` are the
    split ``train``; ``dev`` and ``valid`` are ``validation``.
    """
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for path in sorted(place.glob("*")) if place.is_dir() else ():
            if path.suffix in READERS and path.is_file():
                name = path.stem.split("-")[0].split(".")[0]
                name = {"dev": "validation", "valid": "validation", "val": "validation"}.get(
                    name, name
                )
                found.setdefault(name, []).append(path)
        if found:
            break
    return found
