"""Vectors of methods whose state lives in the factors of matrices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine.direction import Direction
from zopeft.engine.forms import Forms
from zopeft.engine.shapes import Shape
from zopeft.engine.vector import Computed, Elementwise, Vector
from zopeft.kernels.form import Form
from zopeft.optim.state import is_matrix


def on_matrices(blocks: Blocks, shape: Shape) -> dict[int, Shape]:
    """Returns one shape for every whole matrix, by the block's index."""
    return {index: shape for index, block in enumerate(blocks) if is_matrix(block)}


def mean_rights(
    forms: Forms, slopes: Sequence[float], directions: Sequence[Direction]
) -> dict[int, Tensor]:
    """Returns ``1 / K sum_k slope_k right_k`` of shaped blocks, [r, I] by index.

    Direction by direction, since the factors of one are drawn for all blocks at once, and are
    held until the next.

    Args:
        forms: What shaped blocks' directions are made of.
        slopes: One a direction, [K].
        directions: The directions, [K].
    """
    sums: dict[int, Tensor] = {}
    for slope, direction in zip(slopes, directions, strict=True):
        for index in filter(direction.touches, forms.shapes):
            right = forms.pair(index, direction)[1]
            sums[index] = sums.get(index, torch.zeros_like(right)).add_(right, alpha=slope)
    return {index: total.div_(len(slopes)) for index, total in sums.items()}


def along(lefts: Mapping[int, Tensor], rights: Mapping[int, Tensor]) -> Vector:
    """Returns ``left right`` of some matrices, [O, r] and [r, I] by index, as a vector."""

    def numbers(index: int, rows: slice | Tensor) -> Tensor:
        return Form(None, (lefts[index], rights[index])).direction(None, rows)

    return Computed(numbers, frozenset(lefts))


def of_rows(function: Callable[[int, slice | Tensor], Tensor], indices: Collection[int]) -> Vector:
    """Returns a vector that a function makes from a matrix's index and some of its rows."""
    return Computed(function, frozenset(indices))


def sign_of(vector: Vector) -> Vector:
    """Returns the sign of each of a vector's numbers."""
    return Elementwise(lambda _, numbers: numbers.sign_(), (vector,))


def rest(vector: Vector, blocks: Blocks, indices: Collection[int]) -> Vector:
    """Returns a vector on the blocks that are not among some others."""
    return vector.only([index for index in range(len(blocks)) if index not in indices])
