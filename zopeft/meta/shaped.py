"""Gradients as a shaped direction sees them.

A direction u of covariance C meets a gradient g with ``E <g, u>^2 = g^T C g``. So signal,
energy and curvature of a block whose directions have a shape are those of ``C^(1/2) g``:
of a subspace ``sqrt(1 - mix) c U^T G V`` [r, r'] beside ``sqrt(mix) G``, of weighted rows G
with its rows weighted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zopeft.engine import Rows, Shape, Subspace

CHUNK = 1 << 18
"""Elements of a gradient that are copied at a time."""


class Seen(NamedTuple):
    """Some numbers of ``C^(1/2) g``, which is made of parts, each of which is made of runs.

    Args:
        values: The run, before it is multiplied.
        factor: What the part is multiplied by.
        part: The part's number.
        start: Index of the run's first element in the part.
    """

    values: Tensor
    factor: float
    part: int = 0
    start: int = 0


def seen(gradient: Tensor, shape: Shape | None) -> Iterator[Seen]:
    """Yields what ``C^(1/2) g`` is made of.

    Args:
        gradient: G, the gradient of a block, in its shape.
        shape: The shape of the block's directions; None, or a shape that favours no direction
            (low rank), for the identity.
    """
    if isinstance(shape, Rows):
        weights = shape.row_scales(gradient.shape[0], gradient.device)
        for rows, piece in _pieces(gradient):
            scaled = piece * weights[rows].unsqueeze(1)
            yield Seen(scaled, 1.0, start=rows.start * gradient.shape[1])
    elif isinstance(shape, Subspace):
        if shape.mix < 1.0:
            inner = core(gradient, shape)
            yield Seen(inner, math.sqrt((1.0 - shape.mix) * gradient.numel() / inner.numel()))
        if shape.mix > 0.0:
            yield Seen(gradient, math.sqrt(shape.mix), part=int(shape.mix < 1.0))
    else:
        yield Seen(gradient, 1.0)


def core(gradient: Tensor, shape: Subspace) -> Tensor:
    """Returns ``U^T G V``, fp32 [r, r']; a side without a basis keeps its length."""
    left, right = shape.left, shape.right
    parts = []
    for rows, piece in _pieces(gradient):
        part = piece.float()
        if right is not None:
            part = part @ right.to(part)
        if left is not None:
            part = left[rows].to(part).t() @ part
        parts.append(part)
    return torch.cat(parts) if left is None else torch.stack(parts).sum(0)


def _pieces(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    step = max(1, CHUNK // matrix.shape[1])
    for first in range(0, matrix.shape[0], step):
        rows = slice(first, first + step)
        yield rows, matrix[rows]
