"""The random directions of a step, named by their addresses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from zopeft.engine.vector import Vector

if TYPE_CHECKING:
    from zopeft.engine.elements import Part


@dataclass(frozen=True, eq=False)
class Direction(Vector):
    """``u_i = scale_i * z_i(seed)`` over all blocks i, each in its shape.

    Args:
        seed: 64-bit key of the step.
        scales: fp32 [N], standard deviation multiplier of each block's noise (the paper's
            sigma, which its text calls a variance and its code uses as a standard
            deviation, as here); None for ones.
        kept: 64-bit key of what the shapes keep for some steps (`Shape.kept_sizes`); 0
            where they keep nothing.
        indices: Indices of the blocks that it touches; None for all.
    """

    seed: int
    scales: Tensor | None = None
    kept: int = 0
    indices: frozenset[int] | None = None

    @property
    def plain(self) -> Direction:
        """See `Vector.plain`: itself."""
        return self

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return self.indices is None or index in self.indices

    def only(self, indices: Collection[int]) -> Direction:
        """See `Vector.only`: a direction still, with the kernels of one."""
        own = frozenset(indices) if self.indices is None else self.indices & frozenset(indices)
        return replace(self, indices=own)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return (self.seed,)

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`."""
        return True

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return part.noise(self)


Probe = tuple[Vector, float]
"""Where a forward pass looks: ``theta + step * u``; a step of zero is the weights themselves."""
