"""lr="auto" before the first step: curvature and energy along random directions.

`zopeft.optim.rate.RunningRate` makes a learning rate of them, and goes on from there.
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

DIRECTIONS = 8
WIDER, MOST_LOOKS = 3.0, 4
"""Where the bend is lost in rounding, the radius is made so much wider, so many times at most."""
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
    """

    curvature: float
    energy: float
    radius: float
    forward_passes: int

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
        return f"{least}{' and '.join(bounds)} ({DIRECTIONS} directions), then as the run shows"


def first_look(
    engine: Engine,
    closure: Callable[[], Tensor],
    scales: Tensor | None,
    eps: float,
    seed: int,
    chosen: frozenset[int] | None = None,
    along: Callable[[Direction], Vector] = lambda direction: direction,
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

    Raises:
        RunError: The loss of the unperturbed model is not finite.
    """
    base = float(closure())
    if not math.isfinite(base):
        raise run_error(
            "loss", "the model's loss is not finite before training", base, "check --dtype"
        )
    seeds = [step_seed(seed, -1 - number) for number in range(DIRECTIONS)]
    directions = [along(Direction(own, scales, indices=chosen)) for own in seeds]
    grain = GRAIN * _coarseness(engine) * abs(base)
    passes, radius, energy = 1, eps, 0.0
    for look in range(MOST_LOOKS):
        bends, squares = [], []
        for direction in directions:
            plus, minus = probe_pair(engine, closure, direction, radius)
            bends.append((plus + minus - 2.0 * base) / radius**2)
            squares.append(((plus - minus) / (2.0 * radius)) ** 2)
        passes += 2 * DIRECTIONS
        mean = sum(bends) / DIRECTIONS
        if look == 0:
            energy = sum(squares) / DIRECTIONS
        error = math.sqrt(sum((b - mean) ** 2 for b in bends) / (DIRECTIONS * (DIRECTIONS - 1)))
        if not math.isfinite(mean) or mean > max(2.0 * error, grain / radius**2):
            break
        radius *= WIDER
    if not (math.isfinite(mean) and mean > 0.0):
        mean = 0.0
    return FirstLook(mean, energy if math.isfinite(energy) else 0.0, radius, passes)


def _coarseness(engine: Engine) -> float:
    """Precision of the coarsest weights that the loss is computed with."""
    model = engine.blocks.model
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
