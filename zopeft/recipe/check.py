"""Settings from several places, checked together: every problem is found in one pass.

A layer is a nested mapping with a label; later layers win. The label and the dotted key of
the layer that gave a value stand in front of what is wrong with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from zopeft.errors import InputError, close_matches, explain
from zopeft.models.source import EMBEDDED
from zopeft.recipe.conflicts import conflicts
from zopeft.recipe.convert import MismatchError, convert
from zopeft.recipe.method_options import with_method_options
from zopeft.recipe.names import unknown
from zopeft.recipe.schema import FULL, SCALES, SECTIONS, Recipe

_MAPPINGS = ("peft.options", "method.options", "data.columns", "data.template_options")
"""Keys that hold keys of their own; each may be given alone."""
_TOP = ("job", "about", "models", "spaces", "tasks", "small")


@dataclass(frozen=True)
class Setting:
    """One value and where it came from.

    Attributes:
        key: Dotted key, for example ``training.steps``.
        value: The value, not yet checked.
        where: What the user would look for: a flag, an override or a file and key.
    """

    key: str
    value: Any
    where: str


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Returns the field types of a section."""
    return get_type_hints(cls)


def flatten(layer: Mapping[str, Any], label: str, problems: list[str]) -> list[Setting]:
    """Returns the settings of a nested mapping, and notes keys that do not exist.

    Args:
        layer: Sections with their keys, as a recipe file has them.
        label: Name of the file, for messages.
        problems: Lines about unknown keys and misshapen sections are added here.
    """
    settings = []
    for section, values in layer.items():
        if section in _TOP:
            settings.append(Setting(section, values, f"{label}: {section}"))
        elif section not in SECTIONS:
            words = [*SECTIONS, *_TOP]
            problems.append(
                explain(label, "unknown key", str(section), close_matches(str(section), words))
            )
        elif section == "objective" and isinstance(values, str):
            settings.append(Setting("objective.name", values, f"{label}: objective"))
        elif not isinstance(values, Mapping):
            problems.append(explain(f"{label}: {section}", "must hold keys", str(values)))
        else:
            for key, value in values.items():
                dotted = f"{section}.{key}"
                settings.append(Setting(dotted, value, f"{label}: {dotted}"))
    return settings


def known_keys() -> list[str]:
    """Returns every dotted key that a recipe may have."""
    keys = [f"{name}.{f.name}" for name, cls in SECTIONS.items() for f in fields(cls)]
    return [*_TOP, *keys]


def method_keys() -> list[str]:
    """Returns the keys of the method's section, without its options."""
    return [f.name for f in fields(SECTIONS["method"]) if f.name != "options"]


def _near(key: str) -> str:
    """Returns the nearest keys, or what may stand in the key's section."""
    section, _, name = key.partition(".")
    near = difflib.get_close_matches(key, known_keys(), n=3, cutoff=0.75)
    if near or section not in SECTIONS:
        return close_matches(key, near) if near else close_matches(section, SECTIONS)
    return close_matches(name, [f.name for f in fields(SECTIONS[section])])


def _field(key: str) -> tuple[type, Field[Any]] | None:
    """Returns section class and field of a dotted key, or None where there is none."""
    section, _, name = key.partition(".")
    cls: Any = SECTIONS.get(section) if name else Recipe
    if cls is None or (cls is Recipe and section not in _TOP):
        return None
    wanted = name or section
    return next(((cls, f) for f in fields(cls) if f.name == wanted), None)


def _problem(setting: Setting, value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a value of the right type: its range or its name."""
    choices = metadata.get("choices")
    for part in value if isinstance(value, tuple) else (value,):
        if choices and part not in choices:
            return explain(setting.where, "must be one of " + ", ".join(choices), part)
        if isinstance(part, int | float) and not isinstance(part, bool):
            least, above, most = (metadata.get(name) for name in ("least", "above", "most"))
            if least is not None and part < least:
                return explain(setting.where, f"must be at least {least:g}", part)
            if above is not None and part <= above:
                return explain(setting.where, f"must be more than {above:g}", part)
            if most is not None and part > most:
                return explain(setting.where, f"must be at most {most:g}", part)
    kind = metadata.get("registry")
    if kind and value is not None:
        for name in value if isinstance(value, tuple) else (value,):
            wrong = unknown(kind, name)
            if wrong:
                return f"{setting.where}: {wrong}"
    return None


def check_settings(settings: list[Setting], problems: list[str]) -> Recipe:
    """Returns the recipe that the settings make; later settings win.

    Args:
        settings: All settings, in order.
        problems: What was found wrong before; more is added.

    Raises:
        InputError: There are problems; its line holds all of them.
    """
    chosen: dict[str, Any] = {}
    last = {setting.key: setting for setting in _split_options(settings)}
    for setting in last.values():
        base, option = _option(setting.key)
        if option:
            chosen.setdefault(base, {})
            chosen[base] = {**chosen[base], option: setting.value}
            continue
        found = _field(setting.key)
        if found is None:
            problems.append(explain(setting.where, "unknown key", do=_near(setting.key)))
            continue
        cls, entry = found
        try:
            value = convert(setting.value, _hints(cls)[entry.name])
        except MismatchError as wrong:
            problems.append(explain(setting.where, str(wrong), str(setting.value)))
            continue
        wrong_value = _problem(setting, value, entry.metadata)
        if wrong_value:
            problems.append(wrong_value)
        else:
            chosen[setting.key] = value
    if str(chosen.get("model.name")).lower() == EMBEDDED and not Path(EMBEDDED).is_dir():
        chosen["model.name"] = None
    tunes = chosen.get("job", "tune") == "tune"
    chosen.setdefault("peft.name", _usual_peft(chosen) if tunes else FULL)
    if chosen.get("job", "tune") in ("tune", "eval") and _own(chosen):
        # MeZO's thousand examples are a habit of benchmarks; people's own rows all count.
        chosen.setdefault("task.train_examples", None)
        chosen.setdefault("task.eval_examples", None)
    recipe = _assemble(chosen)
    recipe = with_method_options(recipe, last, problems)
    problems.extend(conflicts(recipe))
    if problems:
        raise InputError(_one_line(problems))
    return recipe


def _own(chosen: Mapping[str, Any]) -> bool:
    """Whether the rows are the user's own: without a task's name, or of a task's file."""
    name = chosen.get("task.name")
    if name is None:
        return chosen.get("task.data") is not None or bool(chosen.get("data.mixture"))
    return str(name).endswith((".yaml", ".yml"))


def _usual_peft(chosen: Mapping[str, Any]) -> str:
    """Returns what a run trains that does not say: LoRA, or the one thing its method can serve."""
    name = chosen.get("method.name")
    if name is None:
        return "lora"
    from zopeft.methods import METHODS

    return SCALES if getattr(METHODS[name], "spaces", ()) == (SCALES,) else "lora"


def _option(key: str) -> tuple[str, str]:
    """Splits ``peft.options.r`` into ``("peft.options", "r")``; other keys have no option.

    What the method's section does not know is an option of the method itself.
    """
    for base in _MAPPINGS:
        if key.startswith(base + "."):
            return base, key[len(base) + 1 :]
    section, _, name = key.partition(".")
    if section == "method" and name not in {f.name for f in fields(SECTIONS["method"])}:
        return "method.options", name
    return key, ""


def _split_options(settings: list[Setting]) -> list[Setting]:
    """Returns the settings with each mapping of options as one setting an option."""
    split = []
    for setting in settings:
        if setting.key in _MAPPINGS and isinstance(setting.value, Mapping):
            split += [
                Setting(f"{setting.key}.{name}", value, f"{setting.where}.{name}")
                for name, value in setting.value.items()
            ]
        else:
            split.append(setting)
    return split


def _assemble(chosen: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with the chosen values in their sections."""
    sections = {
        name: cls(**{k.partition(".")[2]: v for k, v in chosen.items() if k.startswith(name + ".")})
        for name, cls in SECTIONS.items()
    }
    return Recipe(**{k: chosen[k] for k in _TOP if k in chosen}, **sections)


def _one_line(problems: list[str]) -> str:
    """Returns one line with every problem, numbered where there are several."""
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0]
    return f"{len(unique)} problems: " + " ".join(
        f"({i}) {line}" for i, line in enumerate(unique, start=1)
    )
