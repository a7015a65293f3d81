"""The shape of a direction that lives in a subspace of a matrix's rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.engine.shapes import Shape
from zopeft.errors import input_error
from zopeft.kernels.form import Factors

SLACK = 0.05
"""How far from orthonormal a basis may be: rounding to bf16 moves its products by 0.01."""


@dataclass(frozen=True, eq=False)
class Subspace(Shape):
    """``u = sqrt(1 - mix) c U Z V^T + sqrt(mix) z``, ``c = sqrt(O I / (r r'))``.

    Z [r, r'] and z [O, I] are independent numbers, each step anew.

    Args:
        left: U, [O, r], orthonormal columns, fp32 or 16-bit; None for the identity.
        right: V, [I, r'], orthonormal columns, fp32 or 16-bit; None for the identity.
        mix: Share of isotropic noise in the energy of u, in [0, 1].

    Raises:
        InputError: A basis is not orthonormal, or `mix` is out of range.

    References:
        Yu et al., "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces", 2024 (SubZero),
        equation 7, whose bases are random and drawn anew now and then.
    """

    left: Tensor | None
    right: Tensor | None
    mix: float = 0.0

    def __post_init__(self) -> None:
        for name, basis in (("left", self.left), ("right", self.right)):
            if basis is not None:
                _check_basis(f"subspace {name}", basis)
        if self.left is None and self.right is None:
            raise input_error("subspace", "one side at least needs a basis", None, "leave it out")
        if not 0.0 <= self.mix <= 1.0:
            raise input_error("subspace mix", "must be between 0 and 1", self.mix)

    @property
    def noisy(self) -> bool:
        """See `Shape.noisy`."""
        return self.mix > 0.0

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: r r' and none."""
        if self.mix >= 1.0:
            return 0, 0
        left = rows if self.left is None else self.left.shape[1]
        return left * (columns if self.right is None else self.right.shape[1]), 0

    def factors(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Factors | None:
        """See `Shape.factors`: c U Z and V^T; without a right basis c U and Z.

        U Z is summed in fp64 and rounded once, so that its bits hardly depend on the machine.
        """
        if self.mix >= 1.0:
            return None
        factor = math.sqrt((1.0 - self.mix) * rows * columns / left.numel())
        if self.right is None:
            assert self.left is not None
            return self.left.float() * factor, left.view(-1, columns)
        inner = left.view(-1, self.right.shape[1]).double()
        product = inner if self.left is None else self.left.double() @ inner
        return (product * factor).float(), self.right.float().t().contiguous()

    def row_scales(self, rows: int, device: torch.device) -> Tensor | None:
        """See `Shape.row_scales`: sqrt(mix)."""
        return torch.full((rows,), math.sqrt(self.mix), device=device) if self.noisy else None

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        bases = [side for side in (self.left, self.right) if side is not None]
        return f"subspace {self.mix!r} {self.left is None}", tuple(bases)

    def to(self, device: torch.device) -> Subspace:
        """See `Shape.to`."""
        left, right = (
            None if side is None else side.to(device) for side in (self.left, self.right)
        )
        return replace(self, left=left, right=right)

    def check(self, block: Block) -> None:
        """See `Shape.check`."""
        super().check(block)
        found = tuple(
            size if side is None else side.shape[0]
            for side, size in zip((self.left, self.right), block.shape, strict=True)
        )
        if found != tuple(block.shape):
            raise input_error(
                block.name, f"needs a subspace of a matrix of {list(block.shape)}", list(found)
            )


def _check_basis(where: str, basis: Tensor) -> None:
    if basis.ndim != 2 or not 1 <= basis.shape[1] <= basis.shape[0]:
        raise input_error(where, "must be a tall matrix", list(basis.shape))
    basis = basis.detach().float()
    gram = basis.t() @ basis
    off = float((gram - torch.eye(len(gram), device=gram.device)).abs().max())
    if not off <= SLACK:
        raise input_error(where, "columns must be orthonormal", f"off by {off:.2g}")
