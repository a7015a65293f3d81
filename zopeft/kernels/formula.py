"""Formulas: what a map does to each element, written down as single operations.

Every operation is one of IEEE arithmetic in fp32 and is rounded by itself, so a formula has the
same bits wherever it is evaluated: here with an operation of PyTorch each, the definition; by
the compiled kernels in one pass over the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zopeft.kernels.runs import Table

WEIGHT, BUFFER, NOISE, CONSTANT = "weight", "buffer", "noise", "constant"
"""Kinds of inputs; all but the first are followed by which one."""
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    # PyTorch's own of fp32 is an ulp off for some numbers on some processors.
    "sqrt": lambda a: a.double().sqrt().float(),
    "abs": torch.abs,
    "sign": torch.sign,
    # Of NaN each is NaN.
    "least": lambda a, b: torch.where(a > b, b, a),
    "most": lambda a, b: torch.where(a < b, b, a),
    "at_most": lambda a, b: (a <= b).float(),
}
Node = tuple[str, *tuple[int, ...]]
"""An input, or an operation and the places of its operands among the nodes before it."""


@dataclass(frozen=True)
class Formula:
    """New weights, and new numbers beside them, of the old ones, of noise and of constants.

    Args:
        nodes: Inputs and operations in an order in which they can be worked out.
        weight: The place of the new weight among the nodes.
        buffers: The place of each buffer's new numbers; None for one that is only read.
    """

    nodes: tuple[Node, ...]
    weight: int
    buffers: tuple[int | None, ...]

    def count(self, kind: str) -> int:
        """Returns how many inputs of a kind it has."""
        return sum(node[0] == kind for node in self.nodes)


@dataclass(frozen=True, eq=False)
class Target:
    """One block that a formula is applied to.

    Args:
        address: 32-bit address of its tensor.
        weight: Its weights as stored, contiguous; changed in place.
        buffers: Tensors of its size, contiguous; those that the formula has new numbers for are
            fp32, and changed in place.
        table: Where noise and rounding of a part of a tensor are addressed, as runs whose weights
            lie one behind the other; None for a whole tensor.
    """

    address: int
    weight: Tensor
    buffers: tuple[Tensor, ...]
    table: Table | None = None


Constants = npt.NDArray[np.float32]
"""The numbers of a formula's constants: [1, c] for all blocks, or [targets, c]."""


def evaluate(
    formula: Formula,
    weight: Tensor,
    buffers: Sequence[Tensor],
    noises: Sequence[Tensor],
    constants: Sequence[float],
) -> tuple[Tensor, list[Tensor | None]]:
    """Works a formula out, with one operation of PyTorch a node.

    Args:
        formula: The formula.
        weight: fp32 [n].
        buffers: fp32 [n] each.
        noises: z of each of its noises, fp32 [n].
        constants: A number each.

    Returns:
        The new weights, and each buffer's new numbers; None for one that is only read.
    """
    found: list[Tensor] = []
    for kind, *places in formula.nodes:
        if kind == WEIGHT:
            value = weight
        elif kind == BUFFER:
            value = buffers[places[0]]
        elif kind == NOISE:
            value = noises[places[0]]
        elif kind == CONSTANT:
            # On the weights' device: a GPU multiplies by the inverse of a number of the CPU.
            value = torch.tensor(constants[places[0]], dtype=torch.float32, device=weight.device)
        else:
            value = OPERATIONS[kind](*(found[place] for place in places))
        found.append(value.expand(weight.shape))
    new = [None if place is None else found[place] for place in formula.buffers]
    return found[formula.weight], new
