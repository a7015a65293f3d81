"""Conservative ZO-SGD: of staying, the step and its opposite, the one with the least loss."""

from __future__ import annotations

from zopeft.engine.vector import HERE
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


class Conservative(ZerothOrder):
    """``theta <- argmin L`` over ``theta``, ``theta - lr g z`` and ``theta + lr g z``.

    All on the step's batch. Five forward passes a step, no memory; ties go to the first. The
    weights are tried without their decay, which the step then has.

    Published settings: those of MeZO. The public code writes the candidates through the
    optimizer with a changed sign, so it is right for plain SGD alone; here they are probes.

    References:
        Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM
        Fine-Tuning: A Benchmark", 2024, ZO-SGD-Cons.
    """

    gradient_units = False
    single = True

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 5

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        u = step.direction()
        here, plus, minus = yield [HERE, u.at(step.eps), u.at(-step.eps)]
        gradient = step.slope(plus, minus)
        length = step.lr * gradient
        losses = [here, *(yield [u.at(-length), u.at(length)])]
        chosen = losses.index(min(losses))
        return [step.descend(u, (0.0, gradient, -gradient)[chosen])]
