"""A pair of probes, apart: the losses on both sides of the weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.vector import Vector


def probe_pair(
    engine: Engine, closure: Callable[[], Tensor], direction: Vector, radius: float
) -> tuple[float, float]:
    """Returns the losses at so many times a direction from the weights, on both sides."""
    losses = []
    for step in (radius, -radius):
        for _ in range(2):
            with engine.perturbed(direction, step):
                loss = float(closure())
            if not engine.settle():
                break
        losses.append(loss)
    return losses[0], losses[1]
