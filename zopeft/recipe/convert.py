"""One value from YAML or a flag, converted to the type its field declares.

YAML reads ``1e-3`` as text and ``1.0`` where a count is meant; both are accepted here.
"""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class MismatchError(ValueError):
    """The value does not fit; the text says what would."""


def convert(value: Any, hint: Any) -> Any:
    """Returns `value` as the type `hint`.

    Args:
        value: What YAML gave.
        hint: The field's annotation: a plain type, a Literal, a union, ``tuple[str, ...]``,
            ``tuple[float, ...]`` or ``dict[str, Any]``.

    Raises:
        MismatchError: `value` cannot be read as `hint`.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint))
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise MismatchError("must be one of " + ", ".join(str(a) for a in get_args(hint)))
    if origin is tuple:
        kind = get_args(hint)[0]
        return _convert_names(value) if kind is str else _convert_numbers(value, kind)
    if origin is dict:
        if isinstance(value, dict):
            return dict(value)
        raise MismatchError("must be a mapping")
    return _convert_plain(value, hint)


def expected(hint: Any) -> str:
    """Returns in words what a value of type `hint` may be."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(str(a) for a in get_args(hint))
    if hint is type(None):
        return "null"
    return _WORDS.get(hint, "a list of names")


def _convert_union(value: Any, parts: tuple[Any, ...]) -> Any:
    """Returns `value` as the first part of a union that takes it."""
    if value is None and type(None) in parts:
        return None
    for part in parts:
        if part is type(None):
            continue
        try:
            return convert(value, part)
        except MismatchError:
            continue
    raise MismatchError("must be " + " or ".join(expected(part) for part in parts))


def _convert_names(value: Any) -> tuple[str, ...]:
    """Returns one name or a list of names as a tuple."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return tuple(value)
    raise MismatchError("must be a list of names")


def _convert_numbers(value: Any, kind: type) -> tuple[Any, ...]:
    """Returns one number or a list of numbers as a tuple."""
    numbers = value if isinstance(value, list | tuple) else [value]
    try:
        return tuple(_convert_plain(number, kind) for number in numbers)
    except MismatchError:
        raise MismatchError("must be a list of numbers") from None


def _convert_plain(value: Any, hint: Any) -> Any:
    """Returns `value` as a bool, int, float or str."""
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise MismatchError("must be " + _WORDS[hint]) from None
        if math.isfinite(number) and hint is float:
            return number
        if math.isfinite(number) and number == int(number):
            return int(value) if isinstance(value, int) else int(number)
    raise MismatchError("must be " + _WORDS[hint])
