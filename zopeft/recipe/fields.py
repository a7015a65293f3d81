"""Fields of a recipe's sections: their metadata says what `zopeft.recipe.check` looks at."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def number(
    default: Any,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
) -> Any:
    """Returns a field with a range: at least `low` or more than `above`, at most `high`."""
    return field(default=default, metadata={"low": low, "above": above, "high": high})


def named(default: Any, registry: str) -> Any:
    """Returns a field whose value is a name in a registry (see `zopeft.recipe.names`)."""
    return field(default=default, metadata={"registry": registry})
