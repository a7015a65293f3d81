"""MeZO-Adam: Adam on the zeroth-order estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class AdamOptions(Options):
    """The options of `MeZOAdam`."""

    beta1: float = option(0.9, "decay of the first moment", least=0.0, below=1.0)
    beta2: float = option(0.999, "decay of the second moment", least=0.0, below=1.0)
    adam_eps: float = option(1e-8, "what is added to the root of the second moment", above=0.0)


class MeZOAdam(ZerothOrder):
    """Adam with ``g z`` for the gradient.

    ``m <- b1 m + (1 - b1) g z; v <- b2 v + (1 - b2) (g z)^2; theta <- theta - lr (m / (1 -
    b1^t)) / (sqrt(v / (1 - b2^t)) + adam_eps)``. Two forward passes a step; two fp32 numbers a
    weight, which stay fp32 whatever the weights are.

    Published settings: full weights lr 1e-4 to 1e-6, LoRA 5e-3 to 1e-5. Its authors found it
    only comparable to ZO-SGD, or worse.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        appendix B.
    """

    Options = AdamOptions
    gradient_units = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m and v."""
        return {"first": PerElement(), "second": PerElement()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        estimate = step.estimate(step.directions, gradients)
        return [step.map(self.rule(step), estimate, state=["first", "second"])]

    def rule(self, step: Step) -> Callable[..., tuple[Tensor, ...]]:
        """Returns what makes weights and moments of weights, estimate and moments."""
        beta1, beta2, eps = self.own.beta1, self.own.beta2, self.own.adam_eps
        scale1, scale2 = 1.0 - beta1**step.count, 1.0 - beta2**step.count

        def moved(lr: float, weight: Tensor, estimate: Tensor, m: Tensor, v: Tensor) -> tuple:
            m.mul_(beta1).add_(estimate, alpha=1.0 - beta1)
            v.mul_(beta2).addcmul_(estimate, estimate, value=1.0 - beta2)
            root = (v / scale2).sqrt_().add_(eps)
            return weight.addcdiv_(m, root, value=-lr / scale1), m, v

        return moved
