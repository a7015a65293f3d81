"""The side path: a product of two thin matrices beside a layer's own weight.

``x (W + step P Q)^T = x W^T + step (x Q^T) P^T``: the weight is read as it is stored, no
twin of it is made, and the product P Q itself is never formed. Both ways show the same
direction; which one is taken depends on which reads and writes less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine.layers import runs_apart
from zopeft.kernels.form import Factors


def has_side_path(module: nn.Module, forward: Callable[..., Any]) -> bool:
    """Whether a layer's output is its input times its weight, plus what it likes.

    True for `torch.nn.Linear` and for GPT-2's Conv1D with the forward of their class;
    their subclasses may do anything.

    Args:
        module: The layer.
        forward: Its forward as it stands.
    """
    own = getattr(forward, "__func__", None) is type(module).forward
    return own and (type(module) is nn.Linear or _is_conv1d(module))


def runs_beside(weight: Tensor, inputs: Tensor) -> bool:
    """Whether a layer's product runs beside its weight rather than in a twin of the weight.

    Beside, T inputs [I] are read and T outputs [O] changed, ``T (I + O)`` numbers; a twin
    has ``O I``. Weights of 16 bits always stay as they are, since rounding a twin to nearest
    would lose most of the product, and so do those of a GPU, where the twin of a product
    takes more than one pass.

    Args:
        weight: The layer's weight, [O, I] or [I, O].
        inputs: [..., I].
    """
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or runs_apart(inputs):
        return True
    return inputs.numel() // inputs.shape[-1] * sum(weight.shape) <= weight.numel()


def add_product(
    module: nn.Module, output: Tensor, inputs: Tensor, factors: Factors, step: float
) -> Tensor:
    """Adds what ``step * left right`` in the weight would add to a layer's output.

    Args:
        module: The layer.
        output: What it gave without, [..., O]; may be written.
        inputs: [..., I].
        factors: left and right, fp32; their product has the shape of the weight.
        step: Finite-difference step with its sign.

    Returns:
        [..., O].
    """
    left, right = factors[0].to(inputs.dtype), factors[1].to(inputs.dtype)
    # A linear layer holds [O, I] and a Conv1D [I, O].
    into, out = (left, right) if _is_conv1d(module) else (right.t(), left.t())
    if runs_apart(inputs) or not output.is_contiguous():
        return output + ((inputs @ into) * step) @ out
    thin = inputs.reshape(-1, inputs.shape[-1]) @ into
    output.view(-1, output.shape[-1]).addmm_(thin, out, alpha=step)
    return output


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
