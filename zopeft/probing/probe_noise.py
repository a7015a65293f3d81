"""Noise of the probes: how much of a difference of losses is rounding, and no slope.

Layers that quantise their inputs make the loss a fine staircase, and so do sums in 16 bit. The
difference
``L(theta + eps u) - L(theta - eps u)`` is the slope's, which grows with eps, and that of two
roundings, which does not: below some eps there is nothing else in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from zopeft.engine import Direction, Engine
from zopeft.noise import step_seed
from zopeft.probing.pair import probe_pair

DIRECTIONS = 4
"""Directions along which differences are taken."""
RADII = (0.125, 0.25, 0.375, 0.5)
"""Where the loss is looked at along the first of them, on both sides, in units of eps."""
DEGREE = 4
"""Degree of the polynomial that is taken for the loss along it."""
MUCH = 0.2
"""Share of noise from which on a user is told of it."""
AIM = 0.1
"""Share that the eps is for that the user is told of."""


QUANTISED = "this base rounds activations"
SIXTEEN = "sums in 16 bit are rounded"
"""Causes of noise."""


@dataclass(frozen=True)
class ProbeNoise:
    """Noise in the differences of losses that a run is made of.

    Args:
        noise: Standard deviation of the noise in a difference, ``sqrt(2) sigma``.
        size: Root mean square of the differences, the noise among them.
        eps: Finite-difference step that it was measured with.
        forward_passes: What it cost.
        cause: Where it comes from, for the user.
    """

    noise: float
    size: float
    eps: float
    forward_passes: int
    cause: str = QUANTISED

    @property
    def share(self) -> float:
        """The noise over the size of a difference; 0 where no loss differs."""
        share = self.noise / self.size if self.size > 0.0 else 0.0
        return share if math.isfinite(share) else 0.0

    @property
    def better_eps(self) -> float:
        """The step that would leave `AIM`, with one digit; ten times eps at most."""
        slope = math.sqrt(max(self.size**2 - self.noise**2, 0.0))
        factor = self.noise / (AIM * slope) if slope > 0.0 else math.inf
        return float(f"{self.eps * min(factor, 10.0):.0e}")

    def line(self) -> str:
        """Returns one line for the user; "" where the noise is small."""
        if self.share <= MUCH:
            return ""
        return (
            f"eps: {min(self.share, 1.0):.0%} of the difference of the probes' losses at eps "
            f"{self.eps:g} is noise, since {self.cause}; "
            f"eps {self.better_eps:g} has less of it"
        )


def measure_noise(
    engine: Engine,
    closure: Callable[[], Tensor],
    scales: Tensor | None,
    eps: float,
    seed: int,
    one_sided: bool = False,
    cause: str = QUANTISED,
) -> ProbeNoise:
    """Measures the noise by what a polynomial leaves of the losses along one direction.

    But for roundings the loss is smooth, and within half of eps a polynomial of `DEGREE`; at
    eps itself it need not be one. Roundings at places that near are as good as independent:
    along LoRAs of a small model in 8 bit, what a polynomial leaves has the same size from 1e-2
    down to 2.5e-5. (Where they are not, less noise is found than there is.) The standard
    deviation is known to a third or so, from 9 losses less 5 coefficients.

    Args:
        engine: The engine over the blocks to train.
        closure: Returns the loss of one batch as a 0-dim tensor.
        scales: fp32 [N], scales in use; None for ones.
        eps: The method's finite-difference step.
        seed: Seed of the run; the directions are those of the first look.
        one_sided: Whether the run takes ``L(theta + eps u) - L(theta)``, half as much slope.
        cause: Where noise would come from.
    """
    directions = [Direction(step_seed(seed, -1 - k), scales) for k in range(DIRECTIONS)]
    places, losses = [0.0], [float(closure())]
    differences = []
    for radius in RADII:
        plus, minus = probe_pair(engine, closure, directions[0], radius * eps)
        places += [radius, -radius]
        losses += [plus, minus]
    for direction in directions:
        plus, minus = probe_pair(engine, closure, direction, eps)
        differences.append(plus - minus)
    passes = len(losses) + 2 * DIRECTIONS
    if not all(map(math.isfinite, (*losses, *differences))):
        return ProbeNoise(0.0, 0.0, eps, passes, cause)
    smooth = np.polynomial.Polynomial.fit(places, losses, DEGREE)
    rest = np.array(losses) - smooth(np.array(places))
    sigma = math.sqrt(float((rest**2).sum()) / (len(losses) - DEGREE - 1))
    size = math.sqrt(sum(d * d for d in differences) / DIRECTIONS)
    size = size / 2.0 if one_sided else size
    return ProbeNoise(math.sqrt(2.0) * sigma, size, eps, passes, cause)
