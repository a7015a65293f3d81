"""Rows: one JSON object a run, appended to a file and found again by its key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.reading import fits, parse_json, to_json
from zopeft.staging import staged

FILE = "rows.jsonl"
ROLES = ("centre", "grid", "fresh", "auto")
"""What a row is for: "centre" is the proposal that a grid is placed around, "grid" a run on
a tuning seed, "fresh" a reported run at the learning rate so chosen, "auto" a reported run
at lr=auto."""

Row = dict[str, Any]
KINDS = {
    **dict.fromkeys(("key", "model", "task", "space", "settings", "entry", "name"), "text"),
    **dict.fromkeys(("seed", "budget", "steps", "forwards"), "count"),
    **dict.fromkeys(("train_loss", "val_loss", "metric"), "number?"),
    **dict.fromkeys(("versions", "hardware"), "object"),
    "role": "text",
    "lr": "rate?",
    "diverged": "flag",
    "metric_name": "text?",
    "curve": "curve",
    "seconds": "number",
    "peak_bytes": "count?",
    "commit": "text?",
}
"""What a report is made of, and the kinds (`zopeft.reading.fits`; a curve is pairs of numbers, a
rate above 0)."""
MOST = 1e100
"""Numbers in rows are smaller."""


def finite(value: float) -> float | None:
    """Returns a number as JSON can hold it: None where it is infinite or not a number."""
    return value if math.isfinite(value) else None


def read_rows(folder: str | Path, where: str = "--report") -> list[Row]:
    """Returns the rows in a bench's folder; a last line that was cut off is left out.

    Args:
        folder: The folder.
        where: What the user named it by.

    Raises:
        InputError: There is no such file, or a line in it is no row.
    """
    file = Path(folder).expanduser() / FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise input_error(where, f"no {FILE} in this folder", str(folder)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise input_error(str(file), f"cannot be read ({error})") from None
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line, f"{file}, line {number}")
            rows[row["key"]] = row
        except (InputError, KeyError, TypeError):
            if number < len(lines):
                raise input_error(f"{file}, line {number}", "is no row of a bench") from None
    return list(rows.values())


def check_rows(rows: list[Row], file: Path) -> None:
    """Refuses rows that no bench has written.

    Raises:
        InputError: What a report is made of is missing in one, or of another kind.
    """
    for row in rows:
        wrong = [name for name, kind in KINDS.items() if not _fits(row, name, kind)]
        wrong += ["lr"] if row.get("role") == "grid" and row.get("lr") is None else []
        if wrong:
            where, got = f"{file}, the row {row['key']!r:.80}", f"{row.get(wrong[0])!r:.60}"
            raise input_error(where, f"is no row of a bench: {wrong[0]}", got)


def _fits(row: Row, name: str, kind: str) -> bool:
    value: Any = row.get(name)
    if kind.endswith("?") and value is None:
        return name in row
    kind = kind.rstrip("?")
    if kind == "rate":
        return _number(value) and value > 0
    if kind == "curve":
        return isinstance(value, list) and all(
            isinstance(point, list)
            and len(point) == 2
            and _number(point[0])
            and (point[1] is None or _number(point[1]))
            for point in value
        )
    if kind in ("count", "number"):
        return fits(value, kind) and _number(value)
    return fits(value, kind)


def _number(value: Any) -> bool:
    # Sums of squares are to be numbers, too.
    return fits(value, "number") and abs(value) < MOST


class RowFile:
    """The rows of a bench, in a file that only grows.

    Args:
        folder: The bench's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.rows: dict[str, Row] = {}
        if self.path.exists():
            self.rows = {row["key"]: row for row in read_rows(folder)}
            # Without the line that an interrupted write may have cut off.
            text = "".join(to_json(row) + "\n" for row in self.rows.values())
            with staged(self.path) as place:
                place.write_text(text, encoding="utf-8")

    def add(self, row: Row) -> None:
        """Appends a row."""
        self.rows[row["key"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")
