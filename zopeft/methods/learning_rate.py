"""lr="auto": the learning rate that the loss's own curvature asks for.

One step along ``u`` with learning rate lr changes the loss, to second order and on
average over directions and batches, by ``-lr A + lr^2 / 2 * G h`` with
``A = sum_i scale_i^2 S_i`` (S: squared norm of the mean gradient), ``G = E[projected_grad
^2]`` and ``h = E[u' H u]``. The best lr is ``A / (G h)``: the share ``A / G`` of a
gradient's energy that is signal, over the curvature. The curvature is measured here by
second differences, ``u' H u = (L(theta + r u) + L(theta - r u) - 2 L(theta)) / r^2``, over
a few directions; the share is the constant `SIGNAL_SHARE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zopeft.engine import Direction, Engine
from zopeft.errors import run_error
from zopeft.methods.defaults import fallback_lr
from zopeft.noise import step_seed

SIGNAL_SHARE = 0.05
"""The share A / G, set by experiment on small models, where the best rates lay between 0.02
and 0.15 of the inverse curvature."""
DIRECTIONS = 8
FIRST_LOOK = 3
MAX_LOOKS = 16
BEND = 0.25
"""Rise of the loss, in nats, that a second difference should show: the curvature is wanted
over the region that tuning crosses, and it is much smaller close to a confident model."""


@dataclass(frozen=True)
class Proposal:
    """A proposed learning rate, and why.

    Args:
        lr: The learning rate.
        reason: One line for the run's output.
        forward_passes: What it cost.
    """

    lr: float
    reason: str
    forward_passes: int


def propose(
    engine: Engine,
    closure: Callable[[], Tensor],
    scales: Tensor | None,
    eps: float,
    seed: int,
) -> Proposal:
    """Measures the mean curvature along random directions and returns share / curvature.

    Args:
        engine: The engine over the blocks to train.
        closure: Returns the loss of one batch as a 0-dim tensor.
        scales: fp32 [N], scales in use; None for ones.
        eps: The method's finite-difference step: where the search for a radius begins.
        seed: Seed of the run; calibration has directions of its own.

    Returns:
        The proposal. Where the loss does not bend upwards along the directions tried,
        the published default of the space, and the reason says so.

    Raises:
        RunError: The loss of the unperturbed model is not finite.
    """
    bends = _Bends(engine, closure, scales, seed)
    if not math.isfinite(bends.base):
        raise run_error(
            "loss", "the model's loss is not finite before training", bends.base, "check --dtype"
        )
    radius, mean = _search(bends, eps)
    curvature = mean / radius**2
    if not math.isfinite(curvature) or curvature <= 0.0:
        lr = fallback_lr(engine.blocks)
        reason = f"lr {lr:.1e}: published default, since no upward curvature was found"
        return Proposal(lr, reason, bends.forward_passes)
    lr = SIGNAL_SHARE / curvature
    reason = (
        f"lr {lr:.2e}: signal share {SIGNAL_SHARE} over curvature {curvature:.3g} "
        f"({DIRECTIONS} directions, radius {radius:.1e})"
    )
    return Proposal(lr, reason, bends.forward_passes)


class _Bends:
    """Second differences of the loss along fixed random directions."""

    def __init__(
        self, engine: Engine, closure: Callable[[], Tensor], scales: Tensor | None, seed: int
    ) -> None:
        self.engine, self.closure = engine, closure
        self.directions = [
            Direction(step_seed(seed, -1 - number), scales) for number in range(DIRECTIONS)
        ]
        self.base = float(closure())
        self.forward_passes = 1

    def mean(self, count: int, radius: float) -> float:
        """Mean over the first `count` directions of L(+radius) + L(-radius) - 2 L(0)."""
        total = 0.0
        for direction in self.directions[:count]:
            for step in (radius, -radius):
                with self.engine.perturbed(direction, step):
                    total += float(self.closure()) - self.base
                self.forward_passes += 1
        return total / count


def _search(bends: _Bends, radius: float) -> tuple[float, float]:
    """Finds a radius at which the loss rises by about `BEND` nats.

    Doubles or halves until the radius is bracketed, then bisects on a log scale, looking
    along a few directions only; measures along all of them where it stops.

    Returns:
        The radius and the mean second difference there; 0 if nothing bends.
    """
    low = high = 0.0
    for _ in range(MAX_LOOKS):
        found = bends.mean(FIRST_LOOK, radius)
        if math.isfinite(found) and 0.5 * BEND <= found <= 2.0 * BEND:
            break
        if math.isfinite(found) and found < BEND:
            low = radius
            radius = math.sqrt(low * high) if high else 2.0 * radius
        else:
            high = radius
            radius = math.sqrt(low * high) if low else 0.5 * radius
    else:
        if not high:
            return radius, 0.0
        radius = high
    return radius, bends.mean(DIRECTIONS, radius)
