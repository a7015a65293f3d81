"""Cells: a bench crossed out into one checked recipe a model, task and space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.build import load_task, task_slug
from zopeft.models.source import EMBEDDED
from zopeft.recipe.bench_schema import LISTS
from zopeft.recipe.load import load_recipe
from zopeft.recipe.schema import MethodSection, Recipe

_IN_DIGEST = ("model", "peft", "task", "method")
_NOT_PASSED_ON = {"rank": 4, "probes": "auto", "rows": None}
"""Settings of the method, and what all rows of once were made with, whatever they are called."""
_LATER = ("directions", "sides", "normalise")
"""Settings of the method that count only where they are not the default: rows of before there
were any still are what they were."""


@dataclass(frozen=True)
class Request:
    """Where a bench's settings come from; see `zopeft.recipe.load.load_recipe`.

    Attributes:
        recipe: Name or file of a recipe, or None.
        overrides: ``key.sub=value`` texts.
        flags: Dotted key to (the flag's name, its value).
        small: Whether the recipe's small twin is wanted.
    """

    recipe: str | None = None
    overrides: Sequence[str] = ()
    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    small: bool = False

    def load(self, chosen: Mapping[str, tuple[str, Any]] | None = None) -> Recipe:
        """Returns the checked recipe, with further flags over all others."""
        flags = {**self.flags, **(chosen or {})}
        return load_recipe("bench", self.recipe, self.overrides, flags, small=self.small)


@dataclass(frozen=True)
class Cell:
    """One model, task and space.

    Attributes:
        model: The model's name in rows and tables.
        task: The task's name.
        space: What is trained.
        recipe: The recipe of this cell alone: ``model.name``, ``task.name`` and
            ``peft.name`` are its own.
    """

    model: str
    task: str
    space: str
    recipe: Recipe

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of every setting that a run's numbers depend on."""
        plain = self.recipe.to_dict()
        told = {section: plain[section] for section in _IN_DIGEST}
        usual = asdict(MethodSection())
        told["method"] = {
            key: value
            for key, value in told["method"].items()
            if key not in _LATER or value != usual[key]
        }
        if any(told["method"][name] not in (was, None) for name, was in _NOT_PASSED_ON.items()):
            told["passed_on"] = True
        told["batch_size"] = plain["training"]["batch_size"]
        told["budget"] = [plain["bench"][key] for key in ("forwards", "count_calibration")]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def cells_of(request: Request) -> tuple[Recipe, list[Cell]]:
    """Returns a bench's recipe and its cells, in the order models, spaces, tasks.

    Raises:
        InputError: A setting is wrong, or no task is named.
    """
    recipe = request.load()
    bench = recipe.bench
    if not bench.searches and not bench.auto:
        what = "of no learning rates to try, lr=auto is all that is left to run"
        raise input_error("bench.auto", what, False, "take bench.auto=true, or bench.grid=5")
    models = bench.models or (recipe.model.name or EMBEDDED,)
    spaces = bench.spaces or (recipe.peft.name,)
    tasks = bench.tasks or (recipe.task.name,)
    if tasks == (None,):
        load_task(None)
    cells = []
    for model, space, task in product(models, spaces, tasks):
        chosen = {
            LISTS["models"]: ("MODEL", None if model == EMBEDDED else model),
            LISTS["tasks"]: ("--task", task),
            LISTS["spaces"]: ("--space", space),
        }
        one = request.load(chosen)
        if model == EMBEDDED:
            one = replace(one, model=replace(one.model, name=None))
        cells.append(Cell(str(model), task_slug(str(task)), str(space), _with_data(one)))
    if len({(c.model, c.task, c.space) for c in cells}) < len(cells):
        raise input_error("bench", "the same model, task and space twice", do="name each once")
    return recipe, cells


def _with_data(recipe: Recipe) -> Recipe:
    """Returns a cell's recipe with its task's own folder, where ``--data`` holds one a task."""
    data = recipe.task.data
    if data is None:
        return recipe
    own = Path(data).expanduser() / task_slug(str(recipe.task.name))
    return replace(recipe, task=replace(recipe.task, data=str(own))) if own.is_dir() else recipe
