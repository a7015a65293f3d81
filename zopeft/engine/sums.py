"""Updates along one or several directions: summed in fp32, and stored once.

``w <- decay w + sum_k coefficient_k u_k``. What 16-bit storage cannot hold is decided by one
rounding a step, with the bits of the step's first direction. One exception: a shaped block in
16-bit storage whose direction has isotropic noise in it (`Rows`, a mixed `Subspace`) is
written, and so rounded, once for each direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.engine.direction import Direction
from zopeft.engine.forms import Forms
from zopeft.engine.layers import CHUNK
from zopeft.kernels.form import Form
from zopeft.kernels.plain_backend import PlainKernels, Statistics

Term = tuple[Direction, float]
"""A direction and its coefficient."""


def terms_of(directions: Sequence[Direction], coefficients: Tensor) -> list[Term]:
    """Returns the terms [K] of one block whose coefficients are not zero; one at least.

    Args:
        directions: The step's directions, [K].
        coefficients: The block's coefficients, [K].
    """
    terms = list(zip(directions, coefficients.tolist(), strict=True))
    return [term for term in terms if term[1] != 0.0] or terms[:1]


def update_weight(
    kernels: PlainKernels,
    index: int,
    block: Block,
    terms: Sequence[Term],
    decay: float,
    weight: Tensor,
    measured: bool = True,
) -> Statistics | None:
    """Writes ``decay w + sum_k coefficient_k u_k`` of a block without a shape.

    Args:
        kernels: What makes noise and adds it.
        index: The block's index.
        block: The block.
        terms: Directions with their coefficients.
        decay: One minus learning rate times weight decay.
        weight: The whole weight, flat; changed in place.
        measured: Whether the statistics are wanted.

    Returns:
        The new weights' statistics where the pass gives them for nothing, else None.
    """
    address, statistics = block.address, None
    if len(terms) == 1 or weight.dtype == torch.float32:
        for direction, coefficient in terms:
            scale = _scale(direction, index)
            statistics = kernels.update(
                direction.seed, address, weight, coefficient, decay, scale, measured
            )
            decay = 1.0
        return statistics
    scratch = torch.empty(min(CHUNK, weight.numel()), device=weight.device)
    for start in range(0, weight.numel(), CHUNK):
        piece = weight[start : start + CHUNK]
        total = scratch[: piece.numel()].copy_(piece).mul_(decay)
        for direction, coefficient in terms:
            scale = _scale(direction, index)
            kernels.shift(direction.seed, address, start, total, coefficient, scale, total)
        kernels.store(terms[0][0].seed, address, start, total, piece)
    return None


def update_matrix(
    kernels: PlainKernels,
    forms: Forms,
    index: int,
    terms: Sequence[Term],
    decay: float,
    weight: Tensor,
    measured: bool = True,
) -> Statistics | None:
    """Writes ``decay W + sum_k coefficient_k U_k`` of a shaped block.

    Products of factors are summed as one product, of all their columns side by side.

    Args:
        kernels: What makes noise and adds it.
        forms: What shaped blocks' directions are made of.
        index: The block's index.
        terms: Directions with their coefficients.
        decay: One minus learning rate times weight decay.
        weight: The whole matrix, [O, I]; changed in place.
        measured: Whether the statistics are wanted.

    Returns:
        The new weights' statistics where the pass gives them for nothing, else None.
    """
    address = forms.blocks[index].address
    found = [(d.seed, c, forms.of(index, d, weight.device)) for d, c in terms]
    if len(found) > 1 and not forms.noisy(index):
        factors = [(form.factors, c) for _, c, form in found if form.factors is not None]
        left = torch.cat([pair[0] * c for pair, c in factors], dim=1)
        right = torch.cat([pair[1] for pair, _ in factors])
        found = [(found[0][0], 1.0, Form(None, (left, right)))]
    statistics = None
    for seed, coefficient, form in found:
        statistics = kernels.update_matrix(
            seed, address, weight, coefficient, decay, form, measured
        )
        decay = 1.0
    return statistics


def _scale(direction: Direction, index: int) -> Tensor | None:
    return None if direction.scales is None else direction.scales[index]
