"""Models: aliases, loading, quantisation and PEFT adapters.

The names below load when used; importing this package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.models.adapters import attach, load_adapter
    from zopeft.models.aliases import MODELS, Alias
    from zopeft.models.loading import load_model
    from zopeft.models.peft_types import PEFT
    from zopeft.models.source import ModelSource, resolve

_HOMES = {
    "Alias": "aliases",
    "MODELS": "aliases",
    "ModelSource": "source",
    "PEFT": "peft_types",
    "attach": "adapters",
    "load_adapter": "adapters",
    "load_model": "loading",
    "resolve": "source",
}

__all__ = [
    "MODELS",
    "PEFT",
    "Alias",
    "ModelSource",
    "attach",
    "load_adapter",
    "load_model",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
