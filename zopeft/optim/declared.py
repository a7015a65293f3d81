"""Declared options: the settings that methods have, once, in a dataclass.

The dataclass's field metadata hold range, choices and a line of help; the method's
constructor, recipes, the Trainer, the journal's header and the documentation read them there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from zopeft.errors import close_matches, input_error


@dataclass(frozen=True)
class Declared:
    """A dataclass whose fields are made by `option`, and checked by what they say."""

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)


Kind = TypeVar("Kind", bound=Declared)


@dataclass(frozen=True)
class Setting:
    """One option, as a reader of a table wants it.

    Args:
        name: Its name.
        default: Its default.
        about: One line.
        range: Its range or choices, in words; "" for any.
    """

    name: str
    default: Any
    about: str
    range: str


def option(
    default: Any,
    about: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[Any, ...] | None = None,
    registry: str | None = None,
) -> Any:
    """Returns a dataclass field that knows what may stand in it.

    Args:
        default: The default; its type is the option's.
        about: One line on what it is.
        least: Smallest value.
        above: A bound that it must be above.
        most: Largest value.
        below: A bound that it must be below.
        choices: All values that it may have; of a tuple, that each of its parts may.
        registry: Kind of the registry that a recipe looks its names up in
            (`zopeft.recipe.names`).
    """
    metadata = {
        "about": about,
        "least": least,
        "above": above,
        "most": most,
        "below": below,
        "choices": choices,
        "registry": registry,
        "type": type(default),
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options(Declared):
    """The options that every method has; those of a method with more subclass it.

    The driver does what they say, whatever the method's plan.
    """

    layers: str = option(
        "all",
        "layers that a step is about: all, the last, some in turn, or where activations stand out",
        choices=("all", "last", "cyclic", "dominant"),
    )
    layer_count: int = option(1, "how many layers, of last and cyclic", least=1)
    layer_steps: int = option(1, "steps until cyclic goes on to the next layers", least=1)
    layer_rest: bool = option(
        False, "whether what is in no layer is trained beside last, cyclic or dominant ones"
    )
    decay_to: str = option(
        "zero",
        "what weight_decay draws to: zero, the run's start, or the start by the distance's sign",
        choices=("zero", "start", "start_sign"),
    )


def take_options(where: str, kind: type[Options], given: dict[str, Any]) -> Options:
    """Makes a method's options of keyword arguments.

    Args:
        where: The method's name, for messages.
        kind: The dataclass.
        given: Names and values.

    Raises:
        InputError: A name is unknown (close matches are offered), or a value is out of range.
    """
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            raise input_error(
                f"{where} options", "has no such option", name, close_matches(name, known)
            )
    return made(f"{where} ", kind, given)


def made(where: str, kind: type[Kind], given: dict[str, Any]) -> Kind:
    """Makes declared settings of keyword arguments whose names are known.

    Args:
        where: What stands before an option's name in messages.
        kind: The dataclass.
        given: Names and values.

    Raises:
        InputError: A value is out of range.
    """
    try:
        return kind(**given)
    except _WrongError as wrong:
        raise input_error(f"{where}{wrong.name}", wrong.what, wrong.value) from None


def settings_of(kind: type[Declared]) -> list[Setting]:
    """Returns a method's options as rows of a table."""
    rows = []
    for each in fields(kind):
        assert each.default is not MISSING
        about, words = each.metadata["about"], range_of(each.metadata)
        rows.append(Setting(each.name, each.default, about, words))
    return rows


def about(kind: type[Declared], name: str) -> str:
    """Returns the line of help of an option."""
    found = {each.name: each.metadata["about"] for each in fields(kind)}
    return str(found[name])


def choices(kind: type[Declared], name: str) -> tuple[Any, ...]:
    """Returns the values that an option may have; () where there is a range, or nothing."""
    found = {each.name: each.metadata["choices"] for each in fields(kind)}
    return tuple(found[name] or ())


class _WrongError(ValueError):
    def __init__(self, name: str, what: str, value: Any) -> None:
        super().__init__(f"{name}: {what}, got {value!r}")
        self.name, self.what, self.value = name, what, value


def _check(name: str, value: Any, rule: Any) -> None:
    kind = rule["type"]
    if kind is bool:
        good = isinstance(value, bool)
    elif kind is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    elif kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and math.isfinite(value)
    else:
        good = isinstance(value, kind)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    if not good:
        raise _WrongError(name, f"must be {names.get(kind, kind.__name__)}", value)
    wrong = outside(value, rule)
    if wrong:
        raise _WrongError(name, *wrong)


def outside(value: Any, rule: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Returns what is wrong with a value of the right type, and the part of it that is.

    Args:
        value: The value; of a tuple each part is looked at.
        rule: The metadata of its field.
    """
    for part in value if isinstance(value, tuple) else (value,):
        if rule.get("choices") is not None and part not in rule["choices"]:
            return f"must be {range_of(rule)}", part
        if isinstance(part, int | float) and not isinstance(part, bool):
            low, above, high, below = (rule.get(key) for key in ("least", "above", "most", "below"))
            inside = (
                (low is None or part >= low)
                and (above is None or part > above)
                and (high is None or part <= high)
                and (below is None or part < below)
            )
            if not inside:
                return f"must be {range_of(rule)}", part
    return None


def range_of(rule: Mapping[str, Any]) -> str:
    """Returns what may stand in a field, in words; "" for anything."""
    if rule.get("choices") is not None:
        return "one of " + ", ".join(map(str, rule["choices"]))
    signs = (("least", ">="), ("above", ">"), ("most", "<="), ("below", "<"))
    found = [f"{sign} {rule[key]}" for key, sign in signs if rule.get(key) is not None]
    return " and ".join(found)
