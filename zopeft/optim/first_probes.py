"""First probes: what a batch shows of each sort of blocks before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from zopeft.engine.direction import Direction
from zopeft.engine.vector import HERE, Vector
from zopeft.noise import role_seed, step_seed
from zopeft.optim.executor import losses_of
from zopeft.optim.learning_rate import rounding_of
from zopeft.optim.looks import Aside
from zopeft.optim.sorts import Sort

if TYPE_CHECKING:
    from zopeft.optim.zeroth_order import ZerothOrder
    from zopeft.probing.closure import Closure

LAST_BITS = 2e-7
"""Differences of losses, as a share of the loss, that are none."""
PROBES = 12
"""Probes that all sorts share, beside the loss at the weights."""


class Look:
    """Probes a batch along directions of one sort of blocks each.

    Args:
        method: The method.
        closure: Returns the loss of the batch.
        sorts: How many sorts there are.
    """

    def __init__(self, method: ZerothOrder, closure: Closure, sorts: int) -> None:
        self.method, self.closure, self.passes = method, closure, 0
        self.pairs = max(1, PROBES // (2 * sorts))
        self.base = self._losses([Aside(HERE)])[0]
        self.grain = rounding_of(method.engine, self.base) / method.eps**2
        self.flat = LAST_BITS * abs(self.base) / method.eps

    def _losses(self, probes: Sequence[tuple[Vector, float]]) -> list[float]:
        # Whether directions of some blocks can share a forward says nothing of those of the run.
        with self.method.probing.separately():
            found, passes = losses_of(self.method.executor, probes, self.closure)
        self.passes += passes
        return [float(loss) for loss in found.tolist()]

    def along(self, number: int, scales: Tensor, given: float) -> Sort:
        """Returns what is seen along directions that have the whole budget on one sort.

        All are probed on both sides. A one-sided difference has half a bend in it, and bends of
        single directions scatter so far about their mean that taking the mean away leaves more
        of them than of the gradient, on a pretrained model.

        Args:
            number: The sort's number.
            scales: fp32 [N], with the whole budget on it, and zero elsewhere.
            given: Its share of the budget.
        """
        method, eps = self.method, self.method.eps
        own = role_seed(method.seed, f"budget {number}")
        seeds = [step_seed(own, count) for count in range(self.pairs)]
        lines = [method.along(Direction(seed, scales)) for seed in seeds]
        bends, grads = [], []
        for line in lines:
            plus, minus = self._losses([line.at(eps), line.at(-eps)])
            bends.append((plus + minus - 2.0 * self.base) / eps**2)
            grads.append((plus - minus) / (2.0 * eps))
        if max(abs(grad) for grad in grads) <= self.flat:
            return Sort(given, 0.0, 0.0)
        bend = sum(bends) / len(bends)
        curvature = bend if bend > self.grain else 0.0
        return Sort(given, sum(grad * grad for grad in grads) / len(grads), curvature)
