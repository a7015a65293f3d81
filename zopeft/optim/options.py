"""Options: the arguments of a method, by name, as settings give them and as a run keeps them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from zopeft.optim.declared import settings_of

_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OTHERWISE = ("lr", "finetuner")
"""What settings hold under these names is not yet what a method takes."""


def options_of(kind: Any) -> dict[str, Any]:
    """Returns a method's arguments and their defaults, also those that it passes on.

    Arguments of a base class count where the class itself takes any keyword.

    Args:
        kind: The method's class.

    Returns:
        Name to default, `inspect.Parameter.empty` where there is none.
    """
    found: dict[str, Any] = {}
    for cls in kind.__mro__:
        if "__init__" not in vars(cls):
            continue
        if cls is Optimizer:
            # Every method has its parameters and defaults made by itself.
            break
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        for one in parameters:
            if one.kind not in _REST:
                found.setdefault(one.name, one.default)
        if not any(one.kind == one.VAR_KEYWORD for one in parameters):
            break
    for setting in settings_of(kind.Options) if hasattr(kind, "Options") else ():
        found.setdefault(setting.name, setting.default)
    return found


def options_from(kind: Any, settings: Any) -> dict[str, Any]:
    """Returns the arguments of a method that settings hold under the method's own names.

    This is the one way from a recipe's method section, or from a trainer's arguments, to a
    method: what a method takes and settings name is passed on, whatever it is.

    Args:
        kind: The method's class. One of order 1 takes ``weight_decay`` alone: the others are
            words of forward passes (``eps`` is another thing to `torch.optim.AdamW`).
        settings: Their attributes are looked up, and what stands in ``options`` (of a trainer's
            arguments ``method_options``) is added: those of the method itself. ``lr`` and
            ``finetuner`` are left to the caller, who has a rate and a loaded fine-tuner to give.
    """
    names = ("weight_decay",) if kind.order else options_of(kind)
    found = {
        name: getattr(settings, name)
        for name in names
        if name not in _OTHERWISE and hasattr(settings, name)
    }
    own = getattr(settings, "method_options", None) or getattr(settings, "options", None)
    return found | dict(own or {})


def given_options(kind: Any, args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a method was made with, by name, with the defaults of what was left out.

    Args:
        kind: The method's class.
        args: Its positional arguments; those beyond its own parameters stand under ``*``.
        given: Its keywords.
    """
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    names = [one.name for one in parameters if one.kind not in (*_REST, one.KEYWORD_ONLY)]
    empty = inspect.Parameter.empty
    found = {name: value for name, value in options_of(kind).items() if value is not empty}
    found.update(zip(names, args, strict=False))
    if len(args) > len(names):
        found["*"] = tuple(args[len(names) :])
    return {**found, **given}
