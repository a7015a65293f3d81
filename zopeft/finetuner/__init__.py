"""Fine-tuners: learned networks that say how strongly each block is perturbed.

A `FineTuner` is data and pure functions: one small network a group of blocks, the features
it reads, and how its output is normalised. It is made by meta-training, saved like an
adapter, and used by the ``zo_finetuner`` method.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.finetuner.artifact import FineTuner
    from zopeft.finetuner.bounded import BoundedPertNN
    from zopeft.finetuner.config import FineTunerConfig, Group
    from zopeft.finetuner.course import Course, Reading
    from zopeft.finetuner.feature_sets import PAPER_FEATURES, STATE_FEATURES
    from zopeft.finetuner.features import FEATURES
    from zopeft.finetuner.legacy import import_pickle
    from zopeft.finetuner.matching import Match
    from zopeft.finetuner.normalisation import normalise
    from zopeft.finetuner.pertnn import PertNN

__all__ = [
    "FEATURES",
    "PAPER_FEATURES",
    "STATE_FEATURES",
    "BoundedPertNN",
    "Course",
    "FineTuner",
    "FineTunerConfig",
    "Group",
    "Match",
    "PertNN",
    "Reading",
    "import_pickle",
    "normalise",
]

_HOMES = {
    "FEATURES": "zopeft.finetuner.features",
    "PAPER_FEATURES": "zopeft.finetuner.feature_sets",
    "STATE_FEATURES": "zopeft.finetuner.feature_sets",
    "BoundedPertNN": "zopeft.finetuner.bounded",
    "Course": "zopeft.finetuner.course",
    "Reading": "zopeft.finetuner.course",
    "FineTuner": "zopeft.finetuner.artifact",
    "FineTunerConfig": "zopeft.finetuner.config",
    "Group": "zopeft.finetuner.config",
    "Match": "zopeft.finetuner.matching",
    "PertNN": "zopeft.finetuner.pertnn",
    "import_pickle": "zopeft.finetuner.legacy",
    "normalise": "zopeft.finetuner.normalisation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zopeft.finetuner' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
