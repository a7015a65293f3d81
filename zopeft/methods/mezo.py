"""MeZO: zeroth-order SGD with one seed a step in place of a gradient."""

from __future__ import annotations

from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


class MeZO(ZerothOrder):
    """ZO-SGD with all scales one: ``theta <- (1 - lr wd) theta - lr projected_grad z``.

    Two forward passes a step, no state beyond a step counter. The arguments are those of
    `ZerothOrder`. Published settings: full weights lr 1e-6 or 1e-7, eps 1e-3; LoRA lr
    1e-4 or 5e-5, eps 1e-2; prefix lr 1e-2 or 1e-3, eps 1e-1. The public code restores
    weights by a third perturbation; here they are never written by a probe.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        Algorithm 1.
    """

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        return [step.descend(step.directions, gradients)]
