"""DAP: directions aligned with a rough gradient, of minimum variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zopeft.engine.vector import Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class DAPOptions(Options):
    """The options of `DAP`."""

    pairs: int = option(1, "pairs of probes that the rough gradient is made of", least=1, most=32)


class DAP(ZerothOrder):
    """``v = w - (w'a) a / |a|^2 + s a / |a|``, s = 1 or -1 at random; MeZO's step along v.

    a is the mean of ``g_k z_k`` over a few pairs of probes; w is one more direction. So ``(v'a)^2
    = |a|^2``, and ``E v v' = I``. 2 pairs + 2 forward passes a step, no memory. Expected to save
    at most 2 / d of the variance: a control.

    Published settings: prompts of OPT-1.3B, lr 1e-4, eps 1e-5. The released code runs another
    noise than its name for one setting, and scales noise by the length of the last axis.

    References:
        Ma and Huang, "Revisiting Zeroth-Order Optimization: Minimum-Variance Two-Point
        Estimators and Directionally Aligned Perturbations", 2025, section 4.
    """

    Options = DAPOptions
    gradient_units = False
    single = True

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 2 * self.own.pairs + 2

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        pool = [step.direction(1 + number) for number in range(self.own.pairs)]
        found = yield [z.at(side * step.eps) for z in pool for side in (1, -1)]
        halves = zip(found[::2], found[1::2], strict=True)
        slopes = [(plus - minus) / (2.0 * step.eps) for plus, minus in halves]
        rough, w = step.estimate(pool, slopes), step.direction()
        side = step.dice("side").choice((1.0, -1.0))
        v = self.aligned(step, w, rough, side)
        plus, minus = yield [v.at(step.eps), v.at(-step.eps)]
        return [step.descend(v, step.slope(plus, minus))]

    def aligned(self, step: Step, w: Vector, rough: Vector, side: float) -> Vector:
        """Returns v; the two products are noted, for they are sums over all weights."""

        def products() -> np.ndarray:
            dot = self.engine.dot
            return np.array([float(dot(w, rough).sum()), float(dot(rough, rough).sum())])

        along, square = map(float, step.note("products", products))
        if square <= 0.0:
            return w
        return w + (side / math.sqrt(square) - along / square) * rough
