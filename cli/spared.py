"""Spared packages: what a run of the command line has no use for is not imported for it.

``transformers`` and ``peft`` import whatever is installed. bitsandbytes brings torch's compiler
with it and datasets brings pandas, some two seconds of a start. A run over a plain model and local
rows uses neither, so that for this process they are as if they were not installed. What is imported
comes while the garbage collector is held back (`zopeft.jobs.libraries`). Python programs that use
zopeft are left alone: theirs is not the only code of their process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.jobs.libraries import hold_collector

from .leaving import leave_at_once

if TYPE_CHECKING:
    from zopeft.recipe.schema import Recipe

SAVED = ("dataset_dict.json", "state.json")
"""Files of folders that datasets wrote, and has to read."""


class Process:
    """Whose process this is.

    Attributes:
        own: Whether it runs one command and nothing else.
    """

    own = False


def spare(recipe: Recipe, adapter: str | None = None) -> None:
    """Leaves out of this process what a recipe's run has no use for, where the process is ours.

    Args:
        recipe: The run's settings.
        adapter: An adapter that is loaded, whose base may be any model.
    """
    if not Process.own:
        return
    hold_collector()
    if _own_code(recipe):
        return
    leave_at_once()
    if adapter is not None:
        return
    for name, needed in (("bitsandbytes", not _plain(recipe)), ("datasets", not _local(recipe))):
        if not needed:
            # What is None there is not found, neither by `import` nor by `find_spec`.
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _own_code(recipe: Recipe) -> bool:
    """Whether code of the user's is run, which may import what it likes."""
    section = recipe.objective
    return bool(section.rewards) or str(section.metric).lstrip("-").startswith("evaluate:")


def _plain(recipe: Recipe) -> bool:
    """Whether the model is known to hold no quantised weights."""
    model = recipe.model
    if model.load_in_8bit or model.load_in_4bit or recipe.peft.name == "scales":
        return False
    if model.name is None:
        return True
    try:
        config: Any = json.loads((Path(model.name).expanduser() / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "quantization_config" not in config


def _local(recipe: Recipe) -> bool:
    """Whether the rows are known to be read without datasets."""
    if not recipe.places:
        # The samples in the package.
        return recipe.model.name is None
    validation = recipe.data.validation
    beside = [validation] if validation and Path(validation).expanduser().exists() else []
    places = [Path(place).expanduser() for place in [*recipe.places, *beside]]
    return all(
        place.exists() and not any((place / name).exists() for name in SAVED) for place in places
    )
