"""DiZO: MeZO, and now and then each layer's distance from the start is rescaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.engine.vector import Each, Elementwise, Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, Start
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class DiZOOptions(Options):
    """The options of `DiZO`."""

    every: int = option(50, "steps between two rescalings", least=1)
    rounds: int = option(5, "pairs of probes that a rescaling takes", least=1, most=64)
    radius: float = option(0.1, "finite-difference step of the factors", above=0.0, below=1.0)
    rate: float = option(2.0, "learning rate of the factors", least=0.0)
    reach: float = option(0.2, "how far a factor may go from 1", least=0.0, below=1.0)


class DiZO(ZerothOrder):
    """``theta_l <- theta0_l + gamma_l (theta_l - theta0_l)`` each so many steps; MeZO otherwise.

    gamma [layers] begins at 1 and takes zeroth-order steps of its own on the batch: ``gamma <-
    gamma - rate (L(gamma + radius d) - L(gamma - radius d)) / (2 radius) d``, within 1 - reach
    and 1 + reach. What is in no layer has one factor. Two forward passes a step, 2 rounds more
    in a rescaling; the start is held, one number a weight.

    Published settings: every 50 steps, radius 0.1, rate 2, reach 0.2.

    References:
        Tan et al., "Harmony in Divergence: Towards Fast, Accurate, and Memory-efficient
        Zeroth-order LLM Fine-tuning", 2025, algorithm 1.
    """

    Options = DiZOOptions
    gradient_units = False
    single = True
    spaces = ("full", "adapter")

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: theta0."""
        return {"start": Start()}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        u, options = step.direction(), self.own
        plus, minus = yield [u.at(step.eps), u.at(-step.eps)]
        gradient = step.slope(plus, minus)
        if step.number == 0 or step.number % options.every:
            return [step.descend(u, gradient)]
        layers = sorted({-1 if b.layer is None else b.layer for b in self.blocks})
        factors, dice = dict.fromkeys(layers, 1.0), step.dice("factors")
        for _ in range(options.rounds):
            moves = {layer: options.radius * dice.gauss(0.0, 1.0) for layer in layers}
            ahead = self._rescaled(step, {n: factors[n] + moves[n] for n in layers})
            behind = self._rescaled(step, {n: factors[n] - moves[n] for n in layers})
            plus, minus = yield [ahead.at(1.0), behind.at(1.0)]
            slope = (plus - minus) / (2.0 * options.radius**2)
            for layer in layers:
                factor = factors[layer] - options.rate * slope * moves[layer]
                factors[layer] = min(1.0 + options.reach, max(1.0 - options.reach, factor))
        shift = self._rescaled(step, factors)

        def moved(lr: float, weight: Tensor, shift: Tensor, u: Tensor) -> tuple:
            return (weight.add_(shift).add_(u.mul_(-lr * gradient)),)

        return [step.map(moved, shift, u)]

    def _rescaled(self, step: Step, factors: Mapping[int, float]) -> Vector:
        """Returns ``(gamma - 1) (theta - theta0)``."""
        layers = [-1 if block.layer is None else block.layer for block in self.blocks]
        excess = Each([factors[layer] - 1.0 for layer in layers])
        return Elementwise(
            lambda weight, start, own: (weight - start).mul_(own),
            (step.state.held("start"), excess),
        )
