"""Tasks: rows of data, their prompts, losses and metrics.

The names below load when used; importing this package imports neither torch nor
transformers nor datasets.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.tasks.catalog import TASKS, load_task
    from zopeft.tasks.data import Data, load_data
    from zopeft.tasks.dataset import Collator, TaskDataset
    from zopeft.tasks.evaluation import evaluate
    from zopeft.tasks.loss import option_scores, task_loss
    from zopeft.tasks.rows import load_rows
    from zopeft.tasks.task import Example, HubSource, Task

_HOMES = {
    "Collator": "dataset",
    "Data": "data",
    "Example": "task",
    "HubSource": "task",
    "TASKS": "catalog",
    "Task": "task",
    "TaskDataset": "dataset",
    "evaluate": "evaluation",
    "load_data": "data",
    "load_rows": "rows",
    "load_task": "catalog",
    "option_scores": "loss",
    "task_loss": "loss",
}

__all__ = [
    "TASKS",
    "Collator",
    "Data",
    "Example",
    "HubSource",
    "Task",
    "TaskDataset",
    "evaluate",
    "load_data",
    "load_rows",
    "load_task",
    "option_scores",
    "task_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
