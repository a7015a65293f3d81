"""Pools of candidates: the best of some directions, or the better half against the worse."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.engine.vector import Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class PoolOptions(Options):
    """The options of `MeZOGreedy` and `MeZOGuided`."""

    pool: int = option(4, "directions that are tried on one side", least=2, most=64)


class MeZOGreedy(ZerothOrder):
    """``u = z_i`` of the least ``L(theta + eps z_i)`` in a pool, then MeZO's step along u.

    n + 2 forward passes a step, no memory. The losses of the pool are used for the choice
    alone; ``directions=n sides=one`` makes an estimate of them.

    References:
        Jin et al., "Prior-Informed Zeroth-Order Optimization with Adaptive Direction Alignment for
        Memory-Efficient LLM Fine-Tuning", 2026, the greedy strategy.
    """

    Options = PoolOptions
    gradient_units = False
    single = True

    def choose(self, directions: list[Vector], losses: list[float]) -> Vector:
        """Returns the step's direction."""
        return directions[losses.index(min(losses))]

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.pool + 2

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        pool: list[Vector] = [step.direction(n) for n in range(self.own.pool)]
        losses = yield [z.at(step.eps) for z in pool]
        u = self.choose(pool, losses)
        plus, minus = yield [u.at(step.eps), u.at(-step.eps)]
        return [step.descend(u, step.slope(plus, minus))]


class MeZOGuided(MeZOGreedy):
    """``u = mean(z of the lower losses) - mean(z of the others)``, then MeZO's step along u.

    n + 2 forward passes a step, no memory. A two-sided ``g u`` is even in u: for a pool of two,
    the choice changes nothing, and the step is MeZO's with twice its variance. The public code
    reseeds for each tensor in the guide but not in the pool, so the noise that it ranks is not
    the noise that it uses.

    References:
        Jin et al., "Prior-Informed Zeroth-Order Optimization with Adaptive Direction Alignment for
        Memory-Efficient LLM Fine-Tuning", 2026, the guiding vector.
    """

    def choose(self, directions: list[Vector], losses: list[float]) -> Vector:
        """Returns the step's direction."""
        order = sorted(range(len(losses)), key=losses.__getitem__)
        half = len(order) // 2
        better, worse = order[:half], order[half:]
        total = (1.0 / half) * directions[better[0]]
        for number in better[1:]:
            total = total + (1.0 / half) * directions[number]
        for number in worse:
            total = total - (1.0 / len(worse)) * directions[number]
        return total
