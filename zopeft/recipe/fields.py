"""Fields of a recipe's sections: their metadata says what `zopeft.recipe.check` looks at."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def number(
    default: Any,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """Returns a field with a range: at least `least` or more than `above`, at most `most`."""
    return field(default=default, metadata={"least": least, "above": above, "most": most})


def named(default: Any, registry: str) -> Any:
    """Returns a field whose value is a name in a registry (see `zopeft.recipe.names`)."""
    return field(default=default, metadata={"registry": registry})
