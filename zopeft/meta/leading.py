"""The leading directions of each matrix's gradients, from one short sketch a side.

Of a matrix with gradients ``G_t`` [O, I] the left directions are the leading eigenvectors
of ``A = sum_t w_t G_t G_t^T`` [O, O], the right ones those of ``sum_t w_t G_t^T G_t``. ``A``
may be large (a vocabulary is a side of it) and is never made: ``A Omega`` is linear in the
sum, so it is added up as gradients pass by, and the eigenvectors come from it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.kernels.choice import kernels_for
from zopeft.noise import Noise, step_seed
from zopeft.noise.address import DIRECTION_STREAM

OVERSAMPLING = 16
"""Columns of a sketch beyond twice the rank."""
CHUNK = 1 << 20
"""Elements of a gradient that are multiplied at a time."""


class SideSketch:
    """``Y = sum_t w_t H_t H_t^T Omega`` of one side of a matrix, ``Omega`` Gaussian by address.

    Where the sketch would be as wide as the side is long, ``Omega`` is the identity and Y
    the sum itself.

    Args:
        size: Length n of the side.
        rank: Directions wanted, r.
        seed: 64-bit key of ``Omega``.
        address: 32-bit address of the matrix.
        device: Where the gradients are.

    References:
        Tropp, Yurtsever, Udell, Cevher, "Fixed-Rank Approximation of a Positive-Semidefinite
        Matrix from Streaming Data", 2017, algorithms 1 to 3.
    """

    def __init__(self, size: int, rank: int, seed: int, address: int, device: torch.device) -> None:
        self.size, self.rank = size, min(rank, size)
        self.width = min(2 * rank + OVERSAMPLING, size)
        self.seed, self.address = seed, address
        self.total = torch.zeros(size, self.width, device=device)
        self._kernels = kernels_for("auto", Noise(), [device])

    @property
    def exact(self) -> bool:
        """Whether nothing is left out."""
        return self.width == self.size

    def test(self) -> Tensor:
        """Returns ``Omega``, fp32 [n, width]."""
        device = self.total.device
        if self.exact:
            return torch.eye(self.size, device=device)
        wanted = [(self.address, self.size * self.width)]
        noise = self._kernels.draw(self.seed, DIRECTION_STREAM, wanted, device)[0]
        return noise.view(self.size, self.width)

    def take_rows(self, rows: Tensor, weight: float) -> None:
        """Adds ``weight H H^T Omega`` of a matrix that is given as its transpose.

        Args:
            rows: ``H^T``, fp32 [m, n], such as m vectors of activations.
            weight: What it counts.
        """
        step = max(1, CHUNK // self.size)
        test = None if self.exact else self.test()
        for piece in rows.split(step):
            products = piece if test is None else piece @ test
            self.total.addmm_(piece.t(), products, alpha=weight)

    def leading(self) -> Tensor | None:
        """Returns the leading eigenvectors, float64 [n, r]; None where all gradients were zero.

        With ``B = Omega^T Y`` the approximation is ``Y B^-1 Y^T``, whose eigenvectors are
        the left singular vectors of ``Y B^(-1/2)``; a small multiple of ``Omega`` is added to
        Y, so that rounding leaves B positive.
        """
        found = self.spectrum()
        return None if found is None else found[0]

    def spectrum(self) -> tuple[Tensor, Tensor] | None:
        """Returns `leading`, and their eigenvalues, float64 [r]."""
        total = self.total.double()
        size = total.norm()
        if not bool(size.isfinite()) or float(size) == 0.0:
            return None
        if self.exact:
            # In descending order, as singular vectors come.
            values, vectors = torch.linalg.eigh(0.5 * (total + total.t()))
            return vectors.flip(1)[:, : self.rank], values.flip(0)[: self.rank]
        test = self.test().double()
        shift = torch.finfo(torch.float32).eps * float(size)
        total = total.add_(test, alpha=shift)
        inner = test.t() @ total
        values, vectors = torch.linalg.eigh(0.5 * (inner + inner.t()))
        values = values.clamp_min(float(values[-1]) * 1e-12)
        factor = torch.linalg.svd((total @ vectors) * values.rsqrt(), full_matrices=False)
        return factor.U[:, : self.rank], factor.S[: self.rank].square()


class LeadingDirections:
    """Sketches of both sides of all matrices among the blocks, ``(O + I) (2 r + 16)`` numbers each.

    Args:
        blocks: The blocks, [N].
        indices: Those to sketch (see `matrices`).
        rank: Directions wanted a side, r.
        seed: Seed of the run.
    """

    def __init__(self, blocks: Blocks, indices: list[int], rank: int, seed: int) -> None:
        self.weight = 1.0
        self._norm = torch.zeros((), dtype=torch.float64, device=blocks[0].parameter.device)
        self._kernels = kernels_for("auto", Noise(), {block.parameter.device for block in blocks})
        self.sketches: dict[int, tuple[SideSketch, SideSketch]] = {}
        for index in indices:
            block = blocks[index]
            device = block.parameter.device
            left, right = (
                SideSketch(
                    size, min(rank, *block.shape), step_seed(seed, key), block.address, device
                )
                for size, key in zip(block.shape, (-2, -3), strict=True)
            )
            self.sketches[index] = (left, right)

    def begin(self, weight: float) -> None:
        """Announces a gradient that counts `weight`; 0 for one of which only the norm is taken."""
        self.weight = weight
        self._norm.zero_()

    @property
    def gradient_norm(self) -> Tensor:
        """Norm of the last gradient taken, over all blocks, 0-dim."""
        return self._norm.sqrt()

    def take(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes a parameter's share of a gradient."""
        square = self._kernels.squares(gradient)
        self._norm += square.to(self._norm.device)
        sketches = self.sketches.get(indices[0])
        # One gradient that is not finite would spoil the sum for good.
        if sketches is None or self.weight == 0.0 or not bool(square.isfinite()):
            return
        left, right = sketches
        rows = max(1, CHUNK // gradient.shape[1])
        pieces = [slice(at, at + rows) for at in range(0, gradient.shape[0], rows)]
        # G [Omega_right, G^T Omega_left]: both products with G in one.
        second = torch.zeros(gradient.shape[1], right.width + left.width, device=gradient.device)
        second[:, : right.width] = right.test()
        first, across = left.test(), second[:, right.width :]
        for piece in pieces:
            across.addmm_(gradient[piece].float().t(), first[piece])
        for piece in pieces:
            some = gradient[piece].float()
            products = some @ second
            right.total.addmm_(some.t(), products[:, : right.width], alpha=self.weight)
            left.total[piece].add_(products[:, right.width :], alpha=self.weight)

    def bases(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns left [O, r] and right [I, r] directions of the blocks that had gradients.

        float64, the columns orthonormal and in order of falling weight.
        """
        found = {}
        for index, (left, right) in self.sketches.items():
            first, second = left.leading(), right.leading()
            if first is not None and second is not None:
                found[index] = (first, second)
        return found


def matrices(blocks: Blocks, embeddings: bool = True) -> list[int]:
    """Returns the indices of the blocks that a subspace can be learned for.

    Args:
        blocks: The blocks, [N].
        embeddings: Whether tables of token embeddings count.
    """
    return [i for i, block in enumerate(blocks) if _is_matrix(block, embeddings)]


def _is_matrix(block: Block, embeddings: bool) -> bool:
    if len(block.shape) != 2 or min(block.shape) < 2 or block.columns is not None:
        return False
    if block.kind == "prompt":
        return False
    return embeddings or block.kind != "embedding"
