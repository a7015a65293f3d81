"""A look ahead: curvature and energy along random directions before the first step.

`calibrate` takes one for who wants to know a learning rate before there is a run. Runs go without:
`zopeft.optim.thrifty.ThriftyRate` has all that it needs from their steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.engine import Direction, Engine
from zopeft.engine.vector import Vector
from zopeft.errors import run_error
from zopeft.noise import step_seed
from zopeft.probing.pair import probe_pair

DIRECTIONS, MOST_LOOKS = 5, 1
"""A look takes 11 forward passes."""
COARSE_DIRECTIONS, MOST_COARSE_LOOKS, WIDER = 2, 2, 10.0
"""Over 16-bit weights a bend may be lost in rounding: then the radius is made so much wider, so
many times at most that there are no more than 9 passes."""
SIXTEEN = 1e-4
"""Precision between those of 32-bit and of 16-bit numbers."""
GRAIN = 0.1
"""Rounding error of a loss, in units of its dtype's precision: a mean over many roundings."""


@dataclass(frozen=True)
class FirstLook:
    """What the loss does along random directions from the start.

    Args:
        curvature: Mean of ``u' H u``; 0 where no bend could be told from none.
        energy: Mean of ``projected_grad^2``.
        radius: Finite-difference step that it was measured with.
        forward_passes: What it cost.
        directions: Along how many.
    """

    curvature: float
    energy: float
    radius: float
    forward_passes: int
    directions: int = DIRECTIONS

    def reason(self, share: str) -> str:
        """Returns where a learning rate that follows from this comes from.

        Args:
            share: The signal share, in words.
        """
        if not self.curvature and not self.energy:
            return "published default, since the loss does not change along any direction"
        bounds = [f"{share} over curvature {self.curvature:.3g}"] if self.curvature else []
        bounds += [f"reach over gradient {math.sqrt(self.energy):.3g}"] if self.energy else []
        least = "the lesser of " if len(bounds) == 2 else ""
        return (
            f"{least}{' and '.join(bounds)} ({self.directions} directions), then as the run shows"
        )


def first_look(
    engine: Engine,
    closure: Callable[[], Tensor],
    scales: Tensor | None,
    eps: float,
    seed: int,
    chosen: frozenset[int] | None = None,
    along: Callable[[Direction], Vector] = lambda direction: direction,
    count: int | None = None,
    looks: int | None = None,
    wider: float = WIDER,
) -> FirstLook:
    """Measures by second differences, ``u' H u = (L(+r u) + L(-r u) - 2 L(0)) / r^2``.

    The radius is eps, where the run will look too. Where the bends are not twice their own
    standard error, or within the rounding of 16-bit weights, it is widened.

    Args:
        engine: The engine over the blocks to train.
        closure: Returns the loss of one batch as a 0-dim tensor.
        scales: fp32 [N], scales in use; None for ones.
        eps: The method's finite-difference step.
        seed: Seed of the run; these directions are their own.
        chosen: Indices of the blocks that the first step is about; None for all.
        along: What the run makes of a random direction.
        count: Directions, 2 at least; None for the usual number.
        looks: Radii that are tried at most; None for the usual number.
        wider: One over the one before.

    Raises:
        RunError: The loss of the unperturbed model is not finite.
    """
    base = float(closure())
    if not math.isfinite(base):
        raise run_error(
            "loss", "the model's loss is not finite before training", base, "check --dtype"
        )
    coarse = coarseness_of(engine) > SIXTEEN
    count = count or (COARSE_DIRECTIONS if coarse else DIRECTIONS)
    looks = looks or (MOST_COARSE_LOOKS if coarse else MOST_LOOKS)
    seeds = [step_seed(seed, -1 - number) for number in range(count)]
    directions = [along(Direction(own, scales, indices=chosen)) for own in seeds]
    grain = rounding_of(engine, base)
    passes, radius, energy = 1, eps, 0.0
    for look in range(looks):
        bends, squares = [], []
        for direction in directions:
            plus, minus = probe_pair(engine, closure, direction, radius)
            bends.append((plus + minus - 2.0 * base) / radius**2)
            squares.append(((plus - minus) / (2.0 * radius)) ** 2)
        passes += 2 * count
        mean = sum(bends) / count
        if look == 0:
            energy = sum(squares) / count
        error = math.sqrt(sum((b - mean) ** 2 for b in bends) / (count * (count - 1)))
        if not math.isfinite(mean) or mean > max(2.0 * error, grain / radius**2):
            break
        radius *= wider
    if not (math.isfinite(mean) and mean > 0.0):
        mean = 0.0
    return FirstLook(mean, energy if math.isfinite(energy) else 0.0, radius, passes, count)


def rounding_of(engine: Engine, loss: float) -> float:
    """Returns how much of a loss may be rounding, in its units.

    Args:
        engine: The engine over the blocks to train.
        loss: The loss.
    """
    return GRAIN * coarseness_of(engine) * abs(loss)


def coarseness_of(engine: Engine) -> float:
    """Returns the precision of the coarsest weights that the loss is computed with."""
    model = engine.blocks.model
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
