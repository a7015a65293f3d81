"""Training: a transformers Trainer whose steps are forward passes only."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ZOTrainer": "zopeft.training.trainer",
    "ZOTrainerMixin": "zopeft.training.trainer",
    "ZOTrainingArguments": "zopeft.training.arguments",
    "newest_checkpoint": "zopeft.training.checkpoints",
    "save_result": "zopeft.training.result",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
