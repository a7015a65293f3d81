"""MeZO with momentum, in both conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.errors import input_error
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class MomentumOptions(Options):
    """The options of `MeZOMomentum`."""

    beta: float = option(0.9, "decay of the momentum", least=0.0, below=1.0)
    convention: str = option(
        "ema",
        "ema: a mean with bias correction, MeZO's rates hold; heavy_ball: a sum, as torch's SGD",
        choices=("ema", "heavy_ball"),
    )


class MeZOMomentum(ZerothOrder):
    """ZO-SGD with momentum: ``m <- beta m + c g z; theta <- theta - lr m / b``.

    As "ema", c = 1 - beta and b = 1 - beta^t; as "heavy_ball", c = b = 1, and a learning rate
    of MeZO is worth 1 - beta of it. Two forward passes a step; one fp32 number a weight.

    Published settings: beta 0.9, as heavy ball.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
        Fine-Tuning: A Benchmark", 2024, ZO-SGD-MMT.
    """

    Options = MomentumOptions

    def check(self, lr: float | str) -> None:
        """See `ZerothOrder.check`: a sum of steps goes further than its rate says."""
        if lr == "auto" and self.own.convention == "heavy_ball":
            do = "give a number, 1 - beta of MeZO's, or take convention ema"
            raise input_error("MeZOMomentum lr", "auto measures the rate of a mean", lr, do)
        super().check(lr)

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m."""
        return {"momentum": PerElement()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        beta, mean = self.own.beta, self.own.convention == "ema"
        if beta == 0.0:
            return [step.descend(step.directions, gradients)]
        new, correction = (1.0 - beta, 1.0 - beta**step.count) if mean else (1.0, 1.0)

        def moved(lr: float, weight: Tensor, estimate: Tensor, momentum: Tensor) -> tuple:
            momentum.mul_(beta).add_(estimate, alpha=new)
            return weight.sub_(momentum, alpha=lr / correction), momentum

        estimate = step.estimate(step.directions, gradients)
        return [step.map(moved, estimate, state=["momentum"])]
