"""Zeroth-order fine-tuning of Hugging Face language models.

The names below are the flat surface; each loads when it is first used, so that
``import zopeft`` is light. Everything else is reached in its room, for example
``zopeft.tasks`` or ``zopeft.journal``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, RunError, ZopeftError

if TYPE_CHECKING:
    from zopeft.blocks import Block, Blocks, discover
    from zopeft.finetuner import FineTuner
    from zopeft.finetuner.mask import Mask
    from zopeft.meta import meta_train
    from zopeft.meta.sensitivity import sensitive_mask
    from zopeft.methods import register_method
    from zopeft.methods.mezo import MeZO
    from zopeft.methods.zo_finetuner import ZOFineTuner
    from zopeft.probing.batch_loss import BatchLoss
    from zopeft.probing.plain import packed
    from zopeft.tasks.data import load_data
    from zopeft.tasks.objectives.own import Objective
    from zopeft.training import ZOTrainer, ZOTrainerMixin, ZOTrainingArguments

__version__ = "0.1.0"

_HOMES = {
    "BatchLoss": "zopeft.probing.batch_loss",
    "Block": "zopeft.blocks",
    "Blocks": "zopeft.blocks",
    "FineTuner": "zopeft.finetuner",
    "Mask": "zopeft.finetuner.mask",
    "MeZO": "zopeft.methods.mezo",
    "Objective": "zopeft.tasks.objectives.own",
    "ZOFineTuner": "zopeft.methods.zo_finetuner",
    "ZOTrainer": "zopeft.training",
    "ZOTrainerMixin": "zopeft.training",
    "ZOTrainingArguments": "zopeft.training",
    "discover": "zopeft.blocks",
    "load_data": "zopeft.tasks.data",
    "meta_train": "zopeft.meta",
    "packed": "zopeft.probing.plain",
    "register_method": "zopeft.methods",
    "sensitive_mask": "zopeft.meta.sensitivity",
}

__all__ = [
    "BatchLoss",
    "Block",
    "Blocks",
    "FineTuner",
    "InputError",
    "Mask",
    "MeZO",
    "Objective",
    "RunError",
    "ZOFineTuner",
    "ZOTrainer",
    "ZOTrainerMixin",
    "ZOTrainingArguments",
    "ZopeftError",
    "__version__",
    "discover",
    "load_data",
    "meta_train",
    "packed",
    "register_method",
    "sensitive_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zopeft' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
