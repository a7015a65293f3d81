"""The options of a method of one's own choice, checked against what the method declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, close_matches, explain
from zopeft.recipe.convert import MismatchError, convert

if TYPE_CHECKING:
    from zopeft.recipe.check import Setting
    from zopeft.recipe.schema import Recipe


def with_method_options(
    recipe: Recipe, settings: Mapping[str, Setting], problems: list[str]
) -> Recipe:
    """Returns the recipe with the method's own options as their types; adds what is wrong.

    Args:
        recipe: The recipe; its method's options are as YAML gave them.
        settings: Key to the setting that it came from, for messages.
        problems: What was found wrong before; more is added.
    """
    section = recipe.method
    if not section.options and section.name is None:
        return recipe
    from zopeft.methods import METHODS
    from zopeft.optim.declared import settings_of, take_options
    from zopeft.recipe.check import method_keys

    name = section.name or ("zo_finetuner" if section.finetuner else "mezo")
    kind: Any = METHODS.get(name)
    if kind is None:
        return recipe
    declared = {each.name: each for each in settings_of(kind.Options)} if not kind.order else {}
    found: dict[str, Any] = {}
    for option, value in section.options.items():
        where = next(
            (
                s.where
                for key, s in settings.items()
                if key in (f"method.{option}", f"method.options.{option}")
            ),
            f"method.{option}",
        )
        if option not in declared:
            known = close_matches(option, [*declared, *method_keys()])
            problems.append(explain(where, f"unknown key (method {name})", do=known))
            continue
        try:
            found[option] = convert(value, type(declared[option].default))
            take_options(name, kind.Options, {option: found[option]})
        except MismatchError as wrong:
            problems.append(explain(where, str(wrong), str(value)))
        except InputError as wrong:
            problems.append(str(wrong))
    if recipe.job == "tune" and not kind.order:
        problems += _misfits(name, kind, recipe)
    elif recipe.objective.scores and kind.order:
        do = "choose one of order 0, or --objective answer"
        problems.append(explain("--method", f"{name} needs gradients, and scores have none", do=do))
    return replace(recipe, method=replace(section, options=found))


def _misfits(name: str, kind: Any, recipe: Recipe) -> list[str]:
    """Returns what a method cannot do with the recipe's other settings."""
    section, found = recipe.method, []
    for option in kind.required:
        if not section.options.get(option):
            what = f"{name} needs {option}"
            found.append(explain("--method", what, do=f"give method.{option}=..."))
    if section.lr == "auto" and not kind.gradient_units:
        found.append(explain("--lr", f"has no rule for auto with {name}", do="give a number"))
    if recipe.objective.scores and kind.differentiates:
        do = "choose another method, or --objective answer"
        found.append(explain("--method", f"{name} needs slopes, and scores have none", do=do))
    if kind.single and (section.directions, section.sides) != (1, "two"):
        do = "leave method.directions and method.sides out"
        found.append(explain("method", f"{name} chooses its directions itself", do=do))
    if section.weight_decay and not kind.decays:
        found.append(explain("method.weight_decay", f"must be 0 with {name}"))
    drawn = section.options.get("decay_to", "zero")
    if drawn != "zero" and not section.weight_decay:
        found.append(explain("method.decay_to", "needs a method.weight_decay above 0", drawn))
    space = {"full": "full", "scales": "scales"}.get(str(recipe.peft.name), "adapter")
    if space not in kind.spaces:
        do = "choose another method or other weights"
        found.append(explain("--method", f"{name} cannot serve {recipe.peft.name}", do=do))
    return found
