"""First-order baselines, through torch.optim: they need gradients and their memory."""

from __future__ import annotations

from typing import Any

import torch

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import refuse_offloaded
from zopeft.errors import input_error

DEFAULT_LR = 1e-3


def _rate(name: str, lr: float | str) -> float:
    if lr == "auto":
        return DEFAULT_LR
    if isinstance(lr, str) or lr < 0:
        raise input_error(f"{name} lr", "must be a number >= 0 or 'auto'", lr)
    return float(lr)


class FirstOrderSGD(torch.optim.SGD):
    """``theta <- theta - lr grad`` over the blocks' parameters.

    Args:
        blocks: The blocks to train, [N].
        lr: Learning rate; "auto" is 1e-3.
        **options: Further arguments of `torch.optim.SGD`.
    """

    order = 1
    needs_finetuner = False

    def __init__(self, blocks: Blocks, lr: float | str = "auto", **options: Any) -> None:
        refuse_offloaded(blocks, "fo_sgd")
        super().__init__(list(blocks.parameters()), lr=_rate("fo_sgd", lr), **options)


class FirstOrderAdam(torch.optim.AdamW):
    """AdamW over the blocks' parameters.

    Args:
        blocks: The blocks to train, [N].
        lr: Learning rate; "auto" is 1e-3.
        **options: Further arguments of `torch.optim.AdamW`.
    """

    order = 1
    needs_finetuner = False

    def __init__(self, blocks: Blocks, lr: float | str = "auto", **options: Any) -> None:
        options.setdefault("weight_decay", 0.0)
        refuse_offloaded(blocks, "fo_adam")
        super().__init__(list(blocks.parameters()), lr=_rate("fo_adam", lr), **options)
