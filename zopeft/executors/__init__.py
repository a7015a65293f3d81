"""Executors beyond this process: servers that hold the model and are asked for losses."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "VLLM": "zopeft.executors.vllm",
    "VLLMServer": "zopeft.executors.vllm_server",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
