"""The side path: a product of two thin matrices beside a layer's own weight.

``x (W + step P Q)^T = x W^T + step (x Q^T) P^T``: the weight is read as it is stored, no
twin of it is made, and the product P Q itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine.layers import runs_apart
from zopeft.kernels.form import Factors
from zopeft.kernels.plain_backend import PlainKernels

WIDENED = 1 << 20
"""Numbers of a 16-bit input that are widened at a time."""


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
    widened = factors[0].device.type == "cpu" and dtype.itemsize == 2
    dtype = torch.float32 if widened else dtype
    left, right = factors[0].to(dtype), factors[1].to(dtype)
    # A linear layer holds [O, I] and a Conv1D [I, O].
    into, out = (left, right) if _is_conv1d(module) else (right.t(), left.t())
    # Rows are added by a kernel then, which reads them as they lie.
    return into, out.contiguous() if widened else out


def add_product(
    kernels: PlainKernels, output: Tensor, inputs: Tensor, sides: Factors, steps: Sequence[float]
) -> Tensor:
    """Adds what ``step * left right`` in the weight would add to a layer's output.

    Args:
        kernels: What adds rows.
        output: What it gave without, [..., O]; may be written.
        inputs: [..., I].
        sides: See `sides_of`; where they are wider than the output, the sum is rounded once.
        steps: Finite-difference steps with their signs, [P]: one for each P-th part of the rows.

    Returns:
        [..., O].
    """
    into, out = sides
    if runs_apart(inputs) or not output.is_contiguous():
        thin = inputs.to(into.dtype) @ into
        thin = kernels.stretched(thin, steps) if len(steps) > 1 else thin * steps[0]
        product = thin @ out
        return (output.to(product.dtype) + product).to(output.dtype)
    given = inputs.reshape(-1, inputs.shape[-1])
    rows = len(given) if given.dtype == into.dtype else max(1, WIDENED // given.shape[1])
    left = torch.cat([part.to(into.dtype) @ into for part in given.split(rows)])
    kernels.add_rows(output.view(-1, output.shape[-1]), left, out, steps)
    return output


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
