"""Blocks: the named parameter tensors of a model that can be perturbed.

`discover` finds them in any causal LM, plain or wrapped by PEFT, and knows each one's
role, layer, kind and owners.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.blocks.block import Block, Blocks, Owner
    from zopeft.blocks.discovery import discover
    from zopeft.blocks.roles import FAMILIES
    from zopeft.blocks.selection import keep_trainable

__all__ = ["FAMILIES", "Block", "Blocks", "Owner", "discover", "keep_trainable"]

_HOMES = {
    "FAMILIES": "zopeft.blocks.roles",
    "Block": "zopeft.blocks.block",
    "Blocks": "zopeft.blocks.block",
    "Owner": "zopeft.blocks.block",
    "discover": "zopeft.blocks.discovery",
    "keep_trainable": "zopeft.blocks.selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zopeft.blocks' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
