"""ConMeZO: directions in a cone around a running mean of the estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from zopeft.engine.vector import Each, Elementwise, Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder

NO_CONE = 1e-12
"""cos(theta) below which a direction has no part in the mean: theta = pi / 2 is MeZO."""


@dataclass(frozen=True)
class ConeOptions(Options):
    """The options of `ConMeZO`."""

    theta: float = option(1.35, "half angle of the cone, in radians", least=0.0, most=math.pi / 2)
    beta: float = option(0.99, "decay of the running mean", least=0.0, below=1.0)
    warmup: int = option(0, "steps in which theta goes down from pi / 2", least=0)
    per: str = option("all", "what the mean's length is taken over", choices=("all", "block"))


class ConMeZO(ZerothOrder):
    """``u = cos(theta) sqrt(d) m / |m| + sin(theta) z; m <- beta m + (1 - beta) g u``.

    ``theta_w <- theta_w - lr g u``, g two-sided along u; the first u is z. Two forward passes a
    step, one number a weight. Where the gradient stays what it is, m finds it: its share of u
    grows with 1 / (1 - beta). At theta = pi / 2 this is MeZO.

    Published settings: theta 1.35, beta 0.95 to 0.99, lr 1e-7, eps 1e-3, batch 8; theta goes
    down from pi / 2 and beta up over the first steps.

    References:
        Behric et al., "ConMeZO: Adaptive Descent-Direction Sampling for Gradient-Free Finetuning
        of Large Language Models", 2025, equation 6.
    """

    Options = ConeOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m."""
        return {"mean": PerElement()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options = self.own
        z, m = step.direction(), step.state.held("mean")
        part = min(1.0, step.number / options.warmup) if options.warmup else 1.0
        theta = math.pi / 2 + part * (options.theta - math.pi / 2)
        # Lengths are noted: a sum over all weights has other last bits on another machine.
        squares = step.note("squares", lambda: self.engine.dot(m, m).numpy())
        u: Vector = z
        if math.cos(theta) > NO_CONE and bool(squares.any()):
            u = self._cone(step, m, squares, math.cos(theta)) + math.sin(theta) * z
        plus, minus = yield [u.at(step.eps), u.at(-step.eps)]
        gradient, beta = step.slope(plus, minus), options.beta

        def moved(lr: float, weight: Tensor, u: Tensor, mean: Tensor) -> tuple:
            mean.mul_(beta).add_(u, alpha=(1.0 - beta) * gradient)
            return weight.add_(u.mul_(-lr * gradient)), mean

        return [step.map(moved, u, state=["mean"])]

    def _cone(self, step: Step, mean: Vector, squares: np.ndarray, share: float) -> Vector:
        own = [step.touches(index) for index in range(len(self.blocks))]
        sizes = np.where(own, np.array(self.blocks.numels, dtype=np.float64), 0.0)
        found = squares.astype(np.float64)
        if self.own.per == "all":
            found, sizes = found.sum(), sizes.sum()
        factors = np.broadcast_to(
            np.sqrt(np.divide(sizes, found, where=found > 0, out=np.zeros_like(sizes * found))),
            squares.shape,
        )
        scale = Each((share * factors).tolist())
        return Elementwise(lambda _, m, factor: m.mul_(factor), (mean, scale))
