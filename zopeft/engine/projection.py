"""Projections of gradients on directions, whose numbers are made piece by piece and not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.engine.direction import Direction
from zopeft.engine.elements import Elements
from zopeft.engine.layers import CHUNK

FOLDED = 4096
"""Sums in fp32 that a projection on a direction is added up from."""


def project(elements: Elements, index: int, seed: int, gradient: Tensor) -> Tensor:
    """Returns ``<gradient, u>`` of one block at scale one, 0-dim float64.

    Args:
        elements: What makes the numbers of directions.
        index: The block's index.
        seed: 64-bit key of the step.
        gradient: Gradient of the block's whole parameter, in its shape.
    """
    block, forms, kernels = elements.blocks[index], elements.forms, elements.kernels
    form = None
    if index in forms:
        form = forms.of(index, Direction(seed), gradient.device)
    elif block.columns is None and forms.noisy(index):
        folded, _ = kernels.fold(seed, block.address, 0, gradient, FOLDED)
        return folded.sum(dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    width = gradient.shape[-1] if gradient.ndim else 1
    matrix = gradient.reshape(-1, width)
    most = max(1, CHUNK // width)
    for first in range(0, len(matrix), most):
        rows = slice(first, first + most)
        piece = matrix[rows]
        if forms.noisy(index):
            noise = kernels.noise.at_elements(
                seed, block.address, first * width, piece.numel(), gradient.device
            )
            product = noise.view(piece.shape).mul_(piece)
            if form is not None and form.scale is not None:
                product.mul_(form.scale[rows].unsqueeze(1))
            if block.columns is not None:
                product = product[:, slice(*block.columns)]
            total += product.sum(dtype=torch.float64)
        if form is not None and form.factors is not None:
            left, right = form.factors
            total += (piece.float() @ right.t()).mul_(left[rows]).sum(dtype=torch.float64)
    return total
