"""Values: what a cell of a row holds, as text and as a label; the same for every file format.

A hole (null, NaN, pandas' NA) is no text and no label; it is refused, never written out as a
word. An empty text is a text. A whole number is written without a point, 3 for 3.0: columns of
whole numbers with holes come as floats from pandas, parquet and the hub.

A label is the index of a choice, from 0, as a whole number (1, 1.0, or as csv has them, "1",
"1.0"), or false and true for 0 and 1 where there are two choices. Tasks from YAML files also
take the text of a choice, whatever type it has; true is then a choice that says true or yes,
in whatever order they stand. A value that is the text of one choice and the index of another
is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from zopeft.tasks.task import Row, RowError

_WHOLE = re.compile(r"([0-9]{1,9})(\.0*)?")
_BOTH = {"false": 0, "true": 1}
_TRUTHS = {"false": ("false", "no"), "true": ("true", "yes")}
_EXACT = 2**53
"""Floats from here on do not hold every whole number."""


def is_hole(value: Any) -> bool:
    """Tells whether a cell holds nothing: null, NaN, or pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def plain(value: Any) -> Any:
    """Returns a single value of numpy's as Python's own, whole floats as integers."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value


def words(value: Any, column: str) -> str:
    """Returns a cell as the text that a user would write.

    Args:
        value: The cell, a single value.
        column: The name of its column, for messages.

    Raises:
        RowError: It is a hole, an infinite number, or no single value.
    """
    if is_hole(value):
        raise RowError(f"column {column!r} is empty ({value}); fill it, or leave the row out")
    value = plain(value)
    if isinstance(value, bytes | bytearray | list | tuple | dict | set) or hasattr(value, "shape"):
        raise RowError(f"column {column!r} must be text, got {value!r:.60}")
    if isinstance(value, float) and math.isinf(value):
        raise RowError(f"column {column!r} must be text or a finite number, got {value}")
    return str(value)


def index(value: Any, count: int) -> int | None:
    """Returns which of `count` choices a label stands for by number; None if for none."""
    value = plain(value)
    if isinstance(value, str):
        word = value.strip()
        found = _WHOLE.fullmatch(word)
        number = _BOTH.get(word.lower()) if count == 2 else None
        number = int(found[1]) if found else number
    elif isinstance(value, bool):
        number = int(value) if count == 2 else None
    else:
        number = value if isinstance(value, int) else None
    return number if number is not None and 0 <= number < count else None


def label(row: Row, choices: int, column: str = "label") -> int:
    """Returns a label column as an index.

    Raises:
        RowError: The value stands for none of the choices 0 to `choices` - 1.
    """
    value = row[column]
    found = index(value, choices)
    if found is None:
        hint = ""
        if str(plain(value)).strip() in ("-1", "-1.0"):
            hint = "; the hub's test splits have no labels, use validation"
        raise RowError(f"column {column!r} must be 0 to {choices - 1}, got {value!r:.60}{hint}")
    return found


def choice(value: Any, texts: Sequence[str], column: str, by: str | None = None) -> int:
    """Returns which choice a label stands for, by its text or by its number.

    Args:
        value: The label.
        texts: The choices.
        column: The name of its column, for messages.
        by: "text" or "index" to read it in one way alone; None for both.

    Raises:
        RowError: It stands for no choice, or for one by its text and another by its number.
    """
    word = "" if is_hole(value) else str(plain(value)).strip()
    truth = _TRUTHS.get(word.lower(), ())
    numbered = None if by == "text" else index(value, len(texts))
    same: list[int] = []
    if by != "index":
        bare = [text.strip() for text in texts]
        same = [k for k, text in enumerate(bare) if text == word or text.lower() in truth]
    if len(same) > 1:
        raise RowError(f"choices {same[0]} and {same[1]} have the same text, {word!r:.60}")
    if same and numbered not in (None, same[0]) and not truth:
        raise RowError(
            f"column {column!r}: {value!r} is the text of choice {same[0]} and the index of "
            f"choice {numbered}; say label_by: text or label_by: index in the task's file"
        )
    if not same and numbered is None:
        kinds = {"text": "", "index": f"0 to {len(texts) - 1}"}
        wanted = kinds.get(by or "", f"0 to {len(texts) - 1} or one of ")
        listed = "" if by == "index" else ", ".join(text.strip() for text in texts)
        raise RowError(f"column {column!r} must be {wanted}{listed}, got {value!r:.60}")
    return same[0] if same else int(numbered or 0)
