"""MEAZO: MeZO over the running size of its own projected gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, Number
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class MEAZOOptions(Options):
    """The options of `MEAZO`."""

    beta: float = option(0.9, "decay of the mean of squares", least=0.0, below=1.0)
    zeta: float = option(1e-8, "what is added to its root", above=0.0)


class MEAZO(ZerothOrder):
    """``v <- beta v + (1 - beta) g^2; theta <- theta - lr g z / (sqrt(v / (1 - beta^t)) + zeta)``.

    An adaptive learning rate from one number: two forward passes a step, no memory. g is the
    mean of the squares over the directions, where there are several. Steps have about the
    length lr, whatever the loss.

    The paper's listing has the exponent t - 1 in the bias correction, which divides by zero
    in the first step; here it is t.

    References:
        Dbouk et al., "On Adaptivity in Zeroth-Order Optimization", 2026, MEAZO.
    """

    Options = MEAZOOptions
    gradient_units = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: v."""
        return {"square": Number()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        beta = self.own.beta
        square = sum(g * g for g in gradients) / len(gradients)
        mean = beta * step.state["square"] + (1.0 - beta) * square
        root = math.sqrt(mean / (1.0 - beta**step.count)) + self.own.zeta
        return [
            step.descend(step.directions, [g / root for g in gradients]),
            step.change(square=mean),
        ]
