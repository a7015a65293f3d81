"""The random directions of a step, named by their addresses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Direction:
    """``u_i = scale_i * z_i(seed)`` over all blocks i, each in its shape.

    Args:
        seed: 64-bit key of the step.
        scales: fp32 [N], standard deviation multiplier of each block's noise (the paper's
            sigma, which its text calls a variance and its code uses as a standard
            deviation, as here); None for ones.
    """

    seed: int
    scales: Tensor | None = None


Probe = tuple[Direction, float]
"""Where a forward pass looks: ``theta + step * u``; a step of zero is the weights themselves."""
