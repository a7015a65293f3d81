"""ZO-AdaMU: fresh and historical noise mixed, over the root of a second moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class AdaMUOptions(Options):
    """The options of `ZOAdaMU`."""

    alpha: float = option(
        0.5, "variance of the fresh noise, after the annealing", above=0.0, most=1.0
    )
    beta1: float = option(0.9, "share of the fresh noise in the direction", least=0.0, most=1.0)
    beta2: float = option(
        0.01, "share of the fresh noise in the second moment", least=0.0, most=1.0
    )
    sigma: float = option(1e-8, "what is added to the second moment", above=0.0)
    warmup: int = option(1024, "steps with alpha and beta1 at 1: fresh noise alone", least=0)
    anneal: int = option(0, "steps in which they then go down by a cosine; 0 for at once", least=0)


class ZOAdaMU(ZerothOrder):
    """``u = m = b1 z' + (1 - b1) z''``, ``z' ~ N(0, alpha)``, ``z'' ~ N(m_before, 1 - alpha)``.

    ``v = b2 z'^2 + (1 - b2) z''^2; theta <- theta - lr g m / sqrt(v + sigma)``, g two-sided along
    m. Two forward passes a step, one number a weight. The paper's N(0, sqrt(alpha)) is read as
    a standard deviation.

    Published settings: alpha 0.2 to 0.7, beta1 0.7 to 0.9, beta2 0.01 to 0.1; annealed by a
    cosine after 1024 steps. The released code does not run (an argument is missing), and
    probes along another mixture than it writes; this is the paper's.

    References:
        Jiang et al., "ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty
        in Zeroth-order Optimization", 2023, algorithm 1.
    """

    Options = AdaMUOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m."""
        return {"history": PerElement()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options, part = self.own, self._annealed(step.number)
        alpha = 1.0 + part * (options.alpha - 1.0)
        beta1 = 1.0 + part * (options.beta1 - 1.0)
        fresh = math.sqrt(alpha) * step.direction(0)
        history = step.state.held("history") + math.sqrt(1.0 - alpha) * step.direction(1)
        u = beta1 * fresh + (1.0 - beta1) * history
        plus, minus = yield [u.at(step.eps), u.at(-step.eps)]
        gradient, beta2, sigma = step.slope(plus, minus), options.beta2, options.sigma

        def moved(lr: float, weight: Tensor, new: Tensor, old: Tensor, history: Tensor) -> tuple:
            mixed = beta1 * new + (1.0 - beta1) * old
            second = beta2 * new.square() + (1.0 - beta2) * old.square()
            weight.add_(mixed / (second + sigma).sqrt_(), alpha=-lr * gradient)
            return weight, mixed

        return [step.map(moved, fresh, history, state=["history"])]

    def _annealed(self, number: int) -> float:
        """How far alpha and beta1 have come from 1 to their ends, 0 to 1."""
        after = number - self.own.warmup
        if after < 0 or self.own.anneal == 0:
            return float(after >= 0)
        share = min(1.0, after / self.own.anneal)
        return 0.5 * (1.0 - math.cos(math.pi * share))
