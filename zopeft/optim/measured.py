"""What a run's steps so far have shown: running means of curvature, energy and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zopeft.optim.rate import ENERGY, FAST, SLOW

CAUTION = 0.25
"""How much larger than its mean a curvature is taken that was seen once."""


@dataclass(frozen=True)
class Measured:
    """What the steps so far have shown.

    Args:
        slow: Running mean of the curvatures ``u' H u``, one a look.
        fast: A quicker one.
        looks: Looks that these are means over.
        bends: Bends, one a direction, that they are means over.
        energy: Running mean of ``projected_grad^2``.
        spread: That of what differences are divided by.
        steps: Steps that these two are means over.
    """

    slow: float = 0.0
    fast: float = 0.0
    looks: int = 0
    bends: int = 0
    energy: float = 0.0
    spread: float = 0.0
    steps: int = 0

    def after(self, grads: Sequence[float], spread: float) -> Measured:
        """Returns this with the differences of one more step, [K], and their spread."""
        square = sum(grad * grad for grad in grads) / len(grads)
        if not (math.isfinite(square) and math.isfinite(spread)):
            return self
        return replace(
            self,
            energy=_mixed(self.energy, square, self.steps, ENERGY),
            spread=_mixed(self.spread, spread, self.steps, ENERGY),
            steps=self.steps + 1,
        )

    def looked(self, bend: float | None, count: int) -> Measured:
        """Returns this with one more look.

        Args:
            bend: The mean of the bends that it saw; None where it saw none.
            count: Their number.
        """
        if bend is None or not math.isfinite(bend):
            return self
        return replace(
            self,
            slow=_mixed(self.slow, bend, self.looks, SLOW),
            fast=_mixed(self.fast, bend, self.looks, FAST),
            looks=self.looks + 1,
            bends=self.bends + count,
        )

    @property
    def curvature(self) -> float:
        """H as it is counted on: the larger of the means, and more while few have been seen."""
        return (1.0 + CAUTION / math.sqrt(max(1, self.bends))) * max(self.slow, self.fast)


def _mixed(mean: float, new: float, count: int, decay: float) -> float:
    """Returns a running mean that is a plain one over its first numbers."""
    part = max(1.0 - decay, 1.0 / (count + 1))
    return (1.0 - part) * mean + part * new
