"""Signal, energy and curvature of each block along a trajectory, gathered in passing.

``S_i = ||E g_i||^2`` (signal), ``E_i = E ||g_i||^2`` (energy) and ``h_i`` = trace of the
Gauss-Newton matrix (curvature), all from gradients that are used up as backward makes
them. S needs the inner product of two mean gradients, which would take two more copies of
the weights; instead each gradient is folded into a short sketch, whose inner products
are the gradients' on average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.kernels.choice import kernels_for
from zopeft.meta.shaped import seen
from zopeft.noise import Noise

SKETCH = 4096
"""Numbers a sketch: the error of an inner product is about its vectors' norms / 64."""
MASK = 0xFFFFFFFF
NOTHING, GRADIENT, CURVATURE = range(3)


class Sketch:
    """Folds a block's gradient into `SKETCH` numbers: signs by address, then sums by position.

    ``sketch_j = sum_k sign_{j + k m} g_{j + k m}``, m the sketch's length: the expected
    inner product of two sketches is that of the gradients, because signs of different
    elements are independent.

    Args:
        seed: 64-bit key of the signs.
        devices: Where the gradients are.

    References:
        Charikar, Chen, Farach-Colton, "Finding Frequent Items in Data Streams", 2002.
    """

    def __init__(self, seed: int, devices: Iterable[torch.device] = (torch.device("cpu"),)) -> None:
        self.seed = seed
        self._kernels = kernels_for("auto", Noise("rademacher"), devices)

    def __call__(self, gradient: Tensor, address: int, start: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the sketch, fp32 [SKETCH], and the sum of squares, 0-dim float64.

        Args:
            gradient: g, or a run of its elements, whose sketches add up to that of g.
            address: 32-bit address of the signs.
            start: Index of the run's first element in g.
        """
        return self._kernels.fold(self.seed, address, start, gradient, SKETCH)

    def squares(self, gradient: Tensor) -> Tensor:
        """Returns the sum of squares alone, 0-dim float64."""
        return self._kernels.squares(gradient)


@dataclass(frozen=True)
class Sums:
    """What `BlockStatistics` has summed up to a moment; see `BlockStatistics.since`."""

    halves: Tensor
    counts: tuple[int, int]
    energy: Tensor
    curvature: Tensor
    curvature_count: int


class BlockStatistics:
    """Running S, E and h of every block.

    A gradient that is not finite in some block is left out in all.

    Args:
        blocks: The blocks, [N].
        seed: 64-bit key of the sketches' signs.
        shapes: Block to the shape of its directions: there S, E and h are those of the
            gradient as such directions see it (`zopeft.meta.shaped`).
    """

    def __init__(
        self, blocks: Blocks, seed: int, shapes: Mapping[int, Shape] | None = None
    ) -> None:
        self.blocks = blocks
        self.shapes = dict(shapes or {})
        device = blocks[0].parameter.device
        self._sketch = Sketch(seed, [block.parameter.device for block in blocks])
        self._halves = torch.zeros(2, len(blocks), SKETCH, device=device)
        self._counts = [0, 0]
        self._energy = torch.zeros(len(blocks), dtype=torch.float64, device=device)
        self._curvature = torch.zeros_like(self._energy)
        self._curvature_count = 0
        # The gradient under way: it counts once it is known to be finite as a whole.
        self._under_way = NOTHING
        self._sketches = torch.zeros_like(self._halves[0])
        self._squares = torch.zeros_like(self._energy)
        self._half = 0
        self._weight = 1.0
        self._norm = torch.zeros((), dtype=torch.float64, device=device)

    def begin_gradient(self, step: int) -> None:
        """Announces a gradient of the loss; even and odd steps form the two halves."""
        self._settle()
        self._under_way, self._half = GRADIENT, step % 2
        self._norm.zero_()

    def begin_curvature(self, labels: int) -> None:
        """Announces a gradient of the loss with `labels` labels drawn from the model itself."""
        self._settle()
        self._under_way, self._weight = CURVATURE, float(labels)

    def _settle(self) -> None:
        """Adds the gradient under way to the sums; one that is not finite is left out of them."""
        finite = bool(self._squares.isfinite().all() & self._sketches.isfinite().all())
        if self._under_way == GRADIENT and finite:
            self._counts[self._half] += 1
            self._energy += self._squares
            self._halves[self._half] += self._sketches
        elif self._under_way == CURVATURE and finite:
            self._curvature_count += 1
            self._curvature += self._weight * self._squares
        self._under_way = NOTHING
        self._squares.zero_()
        self._sketches.zero_()

    @property
    def gradient_norm(self) -> Tensor:
        """Norm of the last gradient taken, 0-dim."""
        return self._norm.sqrt()

    def take_gradient(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes a parameter's share of a gradient of the loss."""
        for index in indices:
            part = self._part(index, gradient)
            norm = None
            for piece in seen(part, self.shapes.get(index)):
                # Parts with signs of their own: their sketches add up to that of them all.
                address = self.blocks[index].address + piece.part & MASK
                sketch, square = self._sketch(piece.values, address, piece.start)
                self._sketches[index].add_(sketch, alpha=piece.factor)
                self._squares[index] += square * piece.factor**2
                norm = square if piece.values is part else norm
            self._norm += self._sketch.squares(part) if norm is None else norm

    def take_curvature(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes a parameter's share of a gradient with drawn labels.

        ``h = N E ||g~||^2`` for a loss that is the mean over N drawn labels: the labels'
        gradients are independent with mean zero, so their outer products sum to the
        Gauss-Newton matrix.
        """
        for index in indices:
            part = self._part(index, gradient)
            for piece in seen(part, self.shapes.get(index)):
                self._squares[index] += self._sketch.squares(piece.values) * piece.factor**2

    def _part(self, index: int, gradient: Tensor) -> Tensor:
        columns = self.blocks[index].columns
        return gradient if columns is None else gradient[..., slice(*columns)]

    def signal(self) -> Tensor:
        """Returns S, float64 [N]: inner product of the two halves' mean gradients.

        Unbiased for the squared norm of the mean gradient, so it may come out negative
        where there is no signal.
        """
        self._settle()
        return _product(self._halves, self._counts)

    def energy(self) -> Tensor:
        """Returns E, float64 [N]."""
        self._settle()
        return self._energy / max(1, sum(self._counts))

    def curvature(self) -> Tensor:
        """Returns h, float64 [N]."""
        self._settle()
        return self._curvature / max(1, self._curvature_count)

    def sums(self) -> Sums:
        """Returns a copy of the sums so far: the beginning of a window."""
        self._settle()
        return Sums(
            self._halves.clone(),
            (self._counts[0], self._counts[1]),
            self._energy.clone(),
            self._curvature.clone(),
            self._curvature_count,
        )

    def since(self, before: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Returns S, E and h of what came after `before`, float64, each [N]."""
        self._settle()
        counts = [now - then for now, then in zip(self._counts, before.counts, strict=True)]
        signal = _product(self._halves - before.halves, counts)
        energy = (self._energy - before.energy) / max(1, sum(counts))
        drawn = max(1, self._curvature_count - before.curvature_count)
        return signal, energy, (self._curvature - before.curvature) / drawn


def _product(halves: Tensor, counts: list[int]) -> Tensor:
    """Returns the inner product of the two halves' mean sketches, [N]."""
    even, odd = (halves[half].double() / max(1, count) for half, count in enumerate(counts))
    return (even * odd).sum(1)
