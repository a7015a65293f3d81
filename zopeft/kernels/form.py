"""What the direction of one matrix is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""fp32 [O, r] and [r, I]."""


@dataclass(frozen=True, eq=False)
class Form:
    """``u_oi = scale_o z_oi + sum_k left_ok right_ki`` for a matrix [O, I].

    Args:
        scale: fp32 [O], what each row's noise is multiplied by; None for no noise.
        factors: left, fp32 [O, r], and right, fp32 [r, I]; None for no product.
    """

    scale: Tensor | None
    factors: Factors | None

    def cut(self, rows: Tensor, columns: slice) -> Form:
        """Returns the form of some rows and columns of the matrix.

        Args:
            rows: Row numbers, int64 [n].
            columns: The columns.
        """
        scale = None if self.scale is None else self.scale[rows.to(self.scale.device)]
        if self.factors is None:
            return Form(scale, None)
        left, right = self.factors
        return Form(scale, (left[rows.to(left.device)], right[:, columns].contiguous()))

    def direction(self, noise: Tensor | None, rows: slice | Tensor) -> Tensor:
        """Returns u of some rows, fp32 [n, I], every product and every sum rounded alone.

        A matrix product would be faster, but its bits depend on machine and threads.

        Args:
            noise: fp32 [n, I] of these rows, used up; None where `scale` is.
            rows: The rows, as an index.
        """
        u = None
        if self.scale is not None:
            assert noise is not None
            u = noise.mul_(self.scale[rows].unsqueeze(1))
        if self.factors is not None:
            left, right = self.factors[0][rows], self.factors[1]
            for k in range(right.shape[0]):
                term = left[:, k : k + 1] * right[k]
                u = term if u is None else u.add_(term)
        assert u is not None
        return u


def row_numbers(rows: slice | Tensor, device: torch.device) -> Tensor:
    """Returns the rows of an index as numbers, int64 [n]."""
    if isinstance(rows, Tensor):
        return rows
    return torch.arange(rows.start, rows.stop, device=device)
