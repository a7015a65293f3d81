"""The side path: a product of two thin matrices beside a layer's own weight.

``x (W + step P Q)^T = x W^T + step (x Q^T) P^T``: the weight is read as it is stored, no
twin of it is made, and the product P Q itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine.layers import runs_apart
from zopeft.kernels.form import Factors

WIDENED = 1 << 18
"""Numbers of a 16-bit output that are widened at a time."""


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


def sides_of(module: nn.Module, factors: Factors, dtype: torch.dtype) -> Factors:
    """Returns what a layer's input is multiplied by, [I, r], and then [r, O].

    In the input's dtype; on a CPU in fp32, where products of 16-bit matrices that are a few columns
    thin take five to twenty times as long.

    Args:
        module: The layer.
        factors: left and right, fp32; their product has the shape of the weight.
        dtype: The input's.
    """
    dtype = torch.float32 if factors[0].device.type == "cpu" and dtype.itemsize == 2 else dtype
    left, right = factors[0].to(dtype), factors[1].to(dtype)
    # A linear layer holds [O, I] and a Conv1D [I, O].
    return (left, right) if _is_conv1d(module) else (right.t(), left.t())


def add_product(output: Tensor, inputs: Tensor, sides: Factors, step: float) -> Tensor:
    """Adds what ``step * left right`` in the weight would add to a layer's output.

    Args:
        output: What it gave without, [..., O]; may be written.
        inputs: [..., I].
        sides: See `sides_of`; where they are wider than the output, the sum is rounded once.
        step: Finite-difference step with its sign.

    Returns:
        [..., O].
    """
    into, out = sides
    if runs_apart(inputs) or not output.is_contiguous():
        product = ((inputs.to(into.dtype) @ into) * step) @ out
        return (output.to(product.dtype) + product).to(output.dtype)
    flat, given = output.view(-1, output.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
    if output.dtype == out.dtype:
        flat.addmm_(given @ into, out, alpha=step)
        return output
    rows = max(1, WIDENED // flat.shape[1])
    for piece, part in zip(flat.split(rows), given.split(rows), strict=True):
        piece.copy_(piece.to(out.dtype).addmm_(part.to(into.dtype) @ into, out, alpha=step))
    return output


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
