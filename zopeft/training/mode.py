"""Modes: what a model says of itself while it is probed.

Other trainers (TRL's) file what they measure in ``compute_loss`` and ``log`` under "train" or
"eval" by the model's own ``training``. Probes run with dropout off, in eval mode; so the model
alone says that it trains there, except while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def said_to_train(model: nn.Module) -> Iterator[None]:
    """Has ``model.training`` be true inside, and false in its forward passes.

    The modules in it are left as they are.

    Args:
        model: A model in eval mode.
    """
    before = model.training
    handles = [
        model.register_forward_pre_hook(_computes),
        model.register_forward_hook(_has_computed, always_call=True),
    ]
    model.training = True
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.training = before


def _computes(model: nn.Module, inputs: Any) -> None:
    model.training = False


def _has_computed(model: nn.Module, inputs: Any, outputs: Any) -> None:
    model.training = True
