"""Forward gradients: the exact slope along a direction, by forward-mode differentiation."""

from __future__ import annotations

from zopeft.engine.vector import HERE
from zopeft.optim.looks import Tangent
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


class ForwardGradient(ZerothOrder):
    """``theta <- theta - lr (dL . z) z``, the slope by a Jacobian-vector product.

    One forward pass with dual numbers a step (about twice the arithmetic of a plain one) and
    the tangents' memory, one number a weight. There is no finite difference, so eps does not
    matter and 16-bit losses lose nothing. Attention must be the plain kind, whose forward
    derivative is known; fused kernels are turned off for the pass.

    Published settings: those of MeZO.

    References:
        Baydin et al., "Gradients without Backpropagation", 2022.
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
        Fine-Tuning: A Benchmark", 2024, Forward-Grad.
    """

    gradient_units = False
    single = True
    differentiates = True
    spaces = ("full", "adapter")
    shards = False

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 1

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        z = step.direction()
        step.taken.count = 1
        _, slope = yield [HERE, Tangent(z)]
        return [step.descend(z, step.clipped(slope))]
