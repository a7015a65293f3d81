"""MeZO-SVRG: variance reduction by an anchor, which is replayed and not stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zopeft.engine.direction import Direction
from zopeft.engine.vector import Sum, Vector
from zopeft.noise import step_seed
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, Series
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class SVRGOptions(Options):
    """The options of `MeZOSVRG`."""

    every: int = option(2, "steps from one anchor to the next", least=1, most=64)
    inner: float = option(1e-3, "learning rate between anchors, as a multiple of lr", above=0.0)


class MeZOSVRG(ZerothOrder):
    """``theta <- theta - lr' [g(theta) z - g(anchor) z + g_a z_a]`` between anchors.

    At an anchor, ``g_a z_a`` is the estimate of that step's batch, and the step is ``theta - lr g_a
    z_a``; ``lr' = inner lr``. Both estimates of a later step have one z. Two forward passes at
    an anchor, four in other steps. Neither the anchor's weights nor its estimate are stored:
    ``anchor - theta`` is the sum of the writes since, along directions that have addresses (for
    which weight decay must be 0). Give the anchor's batch its size by accumulation.

    Published settings: lr 1e-3 at anchors and 1e-6 between them, every 2 steps. The released
    code's anchor is a list of the same tensors, so it estimates at the current weights twice,
    with two directions: its control variate is noise.

    References:
        Gautam et al., "Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models",
        2024, algorithm 2.
    """

    Options = SVRGOptions
    gradient_units = False
    single = True
    decays = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: numbers of steps and what was written along each."""
        return {"written": Series(), "anchor": Series()}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 4

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        z, eps = step.direction(), step.eps
        if step.number % self.own.every == 0 or not step.state["anchor"]:
            plus, minus = yield [z.at(eps), z.at(-eps)]
            gradient = step.slope(plus, minus)
            number = float(step.number)
            written = [number, -step.lr * gradient]
            kept = step.change(anchor=[number, gradient], written=written)
            return [step.descend(z, gradient), kept]
        number, slope = step.state["anchor"]
        before = step.state["written"]
        back: Vector = Sum(())
        written_in = int(number)
        for at, coefficient in zip(before[::2], before[1::2], strict=True):
            # The anchor's own direction is written again in each step since, behind the step's.
            written_in = max(written_in, int(at))
            back = back - coefficient * self._along(int(at), written_in)
        old = [(back + eps * z).at(1.0), (back - eps * z).at(1.0)]
        plus, minus, plus_old, minus_old = yield [z.at(eps), z.at(-eps), *old]
        change = step.slope(plus, minus) - (plus_old - minus_old) / (2.0 * eps)
        inner = self.own.inner
        move = (inner * change) * z + (inner * slope) * self._along(int(number), step.number)
        rate = step.lr * inner
        written = [*before, float(step.number), -rate * change, number, -rate * slope]
        return [step.descend(move, 1.0), step.change(written=written)]

    def _along(self, number: int, written_in: int) -> Vector:
        """Returns the direction of a step, on the blocks that another wrote along it."""
        own, other = (self.selection.at(each) for each in (number, written_in))
        chosen = own if other is None else other if own is None else own & other
        return Direction(step_seed(self.seed, number), indices=chosen)
