"""FZOO: one-sided directions over the spread of their losses."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.engine.vector import HERE
from zopeft.optim.declared import Options, option
from zopeft.optim.estimator import Estimator
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class FZOOOptions(Options):
    """The options of `FZOO`."""

    queries: int = option(8, "directions a step, each on one side", least=2, most=64)


class FZOO(ZerothOrder):
    """``theta <- theta - lr / (N s) sum_i (L_i - L_0) u_i``, s the spread of ``L_i``.

    ``L_i = L(theta + eps u_i)``; N + 1 forward passes a step, no memory. eps is no part of the
    write. It is ``mezo`` with directions N, sides one and normalise, under the name that people
    look for; the paper's directions are Rademacher (``noise=rademacher``). The paper's spread is
    the sample's (N - 1), its code's the population's, as here.

    Published settings: OPT-13B lr 5e-5, eps 1e-4, N 8. The released batched model stops in a
    debugger at every forward.

    References:
        "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards
        Adam-Scale Speed", 2025, algorithm 1.
    """

    Options = FZOOOptions
    gradient_units = False
    single = True

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.queries + 1

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        count = self.own.queries
        directions = [step.direction(number) for number in range(count)]
        here, *losses = yield [HERE, *(u.at(step.eps) for u in directions)]
        rule = Estimator(count, "one", True)
        slopes = rule.differences(losses, here, step.eps)
        return [step.descend(directions, rule.projected(slopes, rule.spread(slopes)))]
