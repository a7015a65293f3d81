"""The registries that a recipe's names are checked against, loaded when needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zopeft.errors import close_matches
from zopeft.reading import is_there
from zopeft.recipe.schema import BARE

_REGISTRIES = {
    "method": ("zopeft.methods", "METHODS"),
    "noise": ("zopeft.noise", "NOISES"),
    "peft": ("zopeft.models", "PEFT"),
    "task": ("zopeft.tasks", "TASKS"),
    "kind": ("zopeft.tasks.kinds", "KINDS"),
    "objective": ("zopeft.tasks.objectives", "OBJECTIVES"),
    "metric": ("zopeft.tasks.objectives.metrics", "METRICS"),
    "model": ("zopeft.models", "MODELS"),
    "feature": ("zopeft.finetuner", "FEATURES"),
}


def registry(kind: str) -> Mapping[str, Any]:
    """Returns the registry of a kind of names: "method", "task", "objective", ..."""
    module, attribute = _REGISTRIES[kind]
    found: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
    return found


def unknown(kind: str, name: str) -> str | None:
    """Returns what is wrong with a name, or None where it is known.

    Args:
        kind: The registry's kind.
        name: The name; for a task also the path of a YAML file.
    """
    known = list(registry(kind)) + (list(BARE) if kind == "peft" else [])
    if name in known:
        return None
    if kind == "metric":
        from zopeft.tasks.objectives.library import unknown_metric

        return unknown_metric(name)
    if kind == "task" and name.endswith((".yaml", ".yml")):
        if is_there(Path(name)) and Path(name).is_file():
            return None
        return f"no such task file, got {name!r}; give an existing YAML file or a task's name"
    word = getattr(registry(kind), "kind", kind)
    refused: Mapping[str, str] = getattr(registry(kind), "refused", {})
    if name in refused:
        return f"{word} {name} is not made: {refused[name]}"
    return f"unknown {word}, got {name!r}; {close_matches(name, known)}"
