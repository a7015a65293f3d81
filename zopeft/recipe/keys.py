"""Every key that a recipe may have: its type, default, range and what it means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, get_type_hints

from zopeft.recipe.convert import expected
from zopeft.recipe.schema import SECTIONS

_ENTRY = re.compile(r"^    (\w+): (.*)$")


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        key: Its dotted name.
        type: What may stand there, in words.
        default: Its default.
        range: Its range, or the registry that its names are of; "" for anything.
        about: What it means.
    """

    key: str
    type: str
    default: Any
    range: str
    about: str

    @property
    def shown_default(self) -> str:
        """The default as YAML would have it."""
        if self.default is None:
            return "null"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, tuple):
            return f"[{', '.join(map(str, self.default))}]"
        return "{}" if self.default == {} else str(self.default)

    def to_dict(self) -> dict[str, Any]:
        """Returns the key as JSON can hold it."""
        plain = asdict(self)
        return {**plain, "default": _plain(self.default)}


def recipe_keys(section: str | None = None) -> list[Key]:
    """Returns every key, with those that single methods have of their own.

    Args:
        section: A section's name; None for all.
    """
    found = []
    for name, cls in SECTIONS.items():
        if section in (None, name):
            found += list(_of_section(name, cls))
            found += list(_of_methods()) if name == "method" else []
    return found


def _of_section(name: str, cls: type) -> Iterator[Key]:
    hints, told = get_type_hints(cls), attributes(cls)
    for each in fields(cls):
        about = each.metadata.get("about") or told.get(each.name, "")
        words = _range(each.metadata)
        yield Key(f"{name}.{each.name}", _type(hints[each.name]), _default(each), words, about)


def _of_methods() -> Iterator[Key]:
    from zopeft.methods import METHODS
    from zopeft.optim.declared import settings_of

    for method, kind in METHODS.items():
        if kind.order == 0:
            for one in settings_of(kind.Options):
                word = _type(type(one.default))
                yield Key(
                    f"method.{one.name}", word, one.default, one.range, f"{method}: {one.about}"
                )


def attributes(cls: type) -> dict[str, str]:
    """Returns what a class's docstring says of each of its attributes, in one line each."""
    _, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.match(line)
        if entry:
            name = entry.group(1)
            found[name] = entry.group(2)
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def _type(hint: Any) -> str:
    if hint in (tuple[str, ...], tuple):
        return "a list of names"
    if getattr(hint, "__origin__", None) is tuple:
        return "a list of numbers"
    return "a mapping" if getattr(hint, "__origin__", None) is dict else expected(hint)


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    assert each.default_factory is not MISSING
    return each.default_factory()


def _range(rule: Mapping[str, Any]) -> str:
    from zopeft.optim.declared import range_of

    kind = rule.get("registry")
    if kind in ("method", "noise", "peft", "task", "model", "objective", "metric"):
        word = "peft" if kind == "peft" else f"{kind}s"
        return f"a name of zopeft list {word}"
    return range_of(rule)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
