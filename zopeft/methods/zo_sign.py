"""ZO-signSGD: the sign of the estimate, or of the projected gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class SignOptions(Options):
    """The options of `ZOSign`."""

    of: str = option(
        "estimate",
        "estimate: sign(g z) of each weight; scalar: sign(g) z, as the public benchmark runs it",
        choices=("estimate", "scalar"),
    )


class ZOSign(ZerothOrder):
    """``theta <- theta - lr sign(g z)``, or ``theta - lr sign(g) z``.

    Two forward passes a step, no memory. The first moves every weight by lr; of several
    directions it takes the sign of the mean estimate, the second the mean of the signs.

    Published settings: full weights lr 1e-6. The public benchmark's code has the first form
    commented out and runs the second.

    References:
        Liu et al., "signSGD via Zeroth-Order Oracle", 2019, algorithm 1.
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
        Fine-Tuning: A Benchmark", 2024, ZO-SGD-Sign.
    """

    Options = SignOptions
    gradient_units = False

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        if self.own.of == "scalar":
            signs = [float((g > 0) - (g < 0)) for g in gradients]
            return [step.descend(step.directions, signs)]

        def moved(lr: float, weight: Tensor, estimate: Tensor) -> tuple:
            return (weight.sub_(estimate.sign_(), alpha=lr),)

        return [step.map(moved, step.estimate(step.directions, gradients))]
