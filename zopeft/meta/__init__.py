"""Meta-training: learning a fine-tuner once for a base model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.meta.settings import MetaSettings
    from zopeft.meta.train import meta_train

__all__ = ["MetaSettings", "meta_train"]

_HOMES = {"MetaSettings": "zopeft.meta.settings", "meta_train": "zopeft.meta.train"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zopeft.meta' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
