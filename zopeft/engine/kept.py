"""Shapes of low rank of which a part is kept for some steps, or for the whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.engine.shapes import LowRank, Shape
from zopeft.kernels.form import Factors

TINY = 1e-300
"""What a column's length is at least divided by: a column of zeros stays one."""


@dataclass(frozen=True)
class LazyLowRank(LowRank):
    """``u = A B^T / sqrt(r)`` with A [O, r] new each step and B [I, r] kept for some."""

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: O r and none."""
        return rows * self.rank, 0

    def kept_sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.kept_sizes`: none and I r."""
        return 0, columns * self.rank

    def keep(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Tensor:
        """See `Shape.keep`: B^T, [r, I]."""
        return right.view(columns, self.rank).t().contiguous()

    def join(self, left: Tensor, right: Tensor, rows: int, columns: int, kept: Any) -> Factors:
        """See `Shape.join`: A / sqrt(r) and B^T."""
        return left.view(rows, self.rank) * (1.0 / math.sqrt(self.rank)), kept

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return f"lazy_low_rank {self.rank}", ()


@dataclass(frozen=True)
class Coordinates(Shape):
    """``u = U diag(tau) V^T / sqrt(r)``, U [O, r] and V [I, r] kept, tau [r] new each step.

    Args:
        rank: r.

    References:
        Sun et al., "TeZO: Empowering the Low-Rankness on the Temporal Dimension in the
        Zeroth-Order Optimization for Fine-tuning LLMs", 2025, equation 5.
    """

    rank: int = 64

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: r and none."""
        return self.rank, 0

    def kept_sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.kept_sizes`: O r and I r."""
        return rows * self.rank, columns * self.rank

    def keep(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Factors:
        """See `Shape.keep`: U / sqrt(r) and V^T."""
        scaled = left.view(rows, self.rank) * (1.0 / math.sqrt(self.rank))
        return scaled, right.view(columns, self.rank).t().contiguous()

    def join(self, left: Tensor, right: Tensor, rows: int, columns: int, kept: Any) -> Factors:
        """See `Shape.join`: U diag(tau) and V^T."""
        return kept[0] * left, kept[1]

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return f"coordinates {self.rank}", ()


@dataclass(frozen=True)
class RandomSubspace(Shape):
    """``u = c U Z V^T``, U [O, r] and V [I, r] orthonormal and kept, Z [r, r] new each step.

    c is sqrt(O I) / r, so that u has the energy of isotropic noise. The rank is at most that of
    the matrix.

    Args:
        rank: r.

    References:
        Yu et al., "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces", 2024 (SubZero),
        algorithm 1; the factor c is that of its code.
    """

    rank: int = 24

    def _rank(self, rows: int, columns: int) -> int:
        return min(self.rank, rows, columns)

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: r r and none."""
        return self._rank(rows, columns) ** 2, 0

    def kept_sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.kept_sizes`: O r and I r."""
        rank = self._rank(rows, columns)
        return rows * rank, columns * rank

    def keep(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Factors:
        """See `Shape.keep`: U and V^T."""
        rank = self._rank(rows, columns)
        return orthonormal(left.view(rows, rank)), orthonormal(right.view(columns, rank)).t()

    def join(self, left: Tensor, right: Tensor, rows: int, columns: int, kept: Any) -> Factors:
        """See `Shape.join`: c U Z and V^T; U Z is summed in fp64 and rounded once."""
        rank = self._rank(rows, columns)
        inner = left.view(rank, rank).double() * (math.sqrt(rows * columns) / rank)
        return (kept[0].double() @ inner).float(), kept[1].contiguous()

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return f"random_subspace {self.rank}", ()


@dataclass(frozen=True)
class Rotated(Shape):
    """``u = c P Psi``, P [O, r] orthonormal and kept, Psi [r, I] new each step.

    c is sqrt(O / r), so that u has the energy of isotropic noise; the side with fewer numbers
    could be rotated as well, and the papers take the rows.

    Args:
        rank: r; at most O.
    """

    rank: int = 64

    def _rank(self, rows: int) -> int:
        return min(self.rank, rows)

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: none and r I."""
        return 0, self._rank(rows) * columns

    def kept_sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.kept_sizes`: O r and none."""
        return rows * self._rank(rows), 0

    def keep(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Tensor:
        """See `Shape.keep`: P."""
        return orthonormal(left.view(rows, self._rank(rows)))

    def join(self, left: Tensor, right: Tensor, rows: int, columns: int, kept: Any) -> Factors:
        """See `Shape.join`: c P and Psi."""
        rank = self._rank(rows)
        return kept * math.sqrt(rows / rank), right.view(rank, columns)

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return f"rotated {self.rank}", ()


def orthonormal(matrix: Tensor) -> Tensor:
    """Returns the Q of a tall matrix's QR, with a positive diagonal of R.

    By Gram-Schmidt, twice, in float64 on the CPU: libraries' QR differ in their signs and
    their last bits, and a journal must be replayed on another machine.

    Args:
        matrix: [n, r], n >= r.

    Returns:
        fp32 [n, r] on the matrix's device.
    """
    columns = matrix.detach().cpu().double()
    basis = torch.empty_like(columns)
    for k in range(columns.shape[1]):
        column = columns[:, k]
        for _ in range(2):
            done = basis[:, :k]
            column = column - done @ (done.t() @ column)
        basis[:, k] = column / column.square().sum().sqrt().clamp(min=TINY)
    return basis.float().to(matrix.device)
