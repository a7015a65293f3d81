"""Tangents: the derivative of a loss along a vector, by forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as dual
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from zopeft.blocks import Blocks
from zopeft.engine.elements import Elements, as_matrix
from zopeft.engine.vector import Vector


def slope_along(
    blocks: Blocks, elements: Elements, vector: Vector, closure: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns a closure's loss and its derivative along a vector, each 0-dim fp32.

    Args:
        blocks: The blocks, [N]; none of them offloaded.
        elements: What makes the vector's numbers.
        vector: The vector.
        closure: Returns the loss of the batch as a 0-dim tensor.
    """
    with dual.dual_level(), sdpa_kernel(SDPBackend.MATH), _moving(blocks, elements, vector):
        loss, slope = dual.unpack_dual(closure())
        if slope is None:
            slope = torch.zeros_like(loss)
        return loss.detach().float(), slope.detach().float()


@contextmanager
def _moving(blocks: Blocks, elements: Elements, vector: Vector) -> Iterator[None]:
    """Puts dual numbers in place of the parameters."""
    tangents: dict[int, Tensor] = {}
    swapped = []
    for index, block in enumerate(blocks):
        parameter = block.parameter
        tangent = tangents.setdefault(id(parameter), torch.zeros_like(parameter.detach()))
        own = tangent if block.columns is None else tangent[..., slice(*block.columns)]
        if vector.touches(index):
            for part in elements.parts(index, block.data):
                as_matrix(own)[part.rows] = vector.values(part).to(own.dtype)
        for owner in block.owners:
            swapped.append((owner.module._parameters, owner.leaf, parameter, tangent))
    try:
        for parameters, leaf, parameter, tangent in swapped:
            parameters[leaf] = dual.make_dual(parameter.detach(), tangent)  # type: ignore[assignment]
        yield
    finally:
        for parameters, leaf, parameter, _ in swapped:
            parameters[leaf] = parameter
