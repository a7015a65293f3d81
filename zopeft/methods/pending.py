"""The estimate of a step that has not been applied yet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zopeft.engine import Direction
from zopeft.engine.direction import Probe
from zopeft.methods.estimator import Estimator
from zopeft.methods.record import StepRecord
from zopeft.noise import direction_seed


class Pending:
    """The losses of the step under way, summed over micro-batches.

    Args:
        estimator: Where the step's probes look.
        seed: 64-bit key of the step.
        scales: fp32 [N], scales as used; None for ones.
        eps: Its finite-difference step.
        looks: Whether it also takes the loss that tells the curvature.
        recorded: The step's record where it is repeated from a journal.

    Attributes:
        probes: Where its forward passes look, [P], in the order that they run in.
        aside: Which of them make up the step's losses.
        takes_centre: Whether the loss at the weights themselves is taken beside them.
    """

    def __init__(
        self,
        estimator: Estimator,
        seed: int,
        scales: Tensor | None,
        eps: float,
        looks: bool = False,
        recorded: StepRecord | None = None,
    ) -> None:
        self.estimator, self.eps, self.recorded = estimator, eps, recorded
        self.directions = [
            Direction(direction_seed(seed, number), scales)
            for number in range(estimator.directions)
        ]
        self.takes_centre = looks and not estimator.one_sided
        places = estimator.places(eps, looks)
        self.probes: list[Probe] = [(self.directions[k], step) for k, step in places]
        self.aside = slice(None)
        if estimator.one_sided:
            self.aside = slice(1, 1 + estimator.directions)
        self._sums = [0.0] * len(self.probes)
        self._count = 0
        self._centre: float | None = None

    @property
    def direction(self) -> Direction:
        """The first direction, whose key is the step's."""
        return self.directions[0]

    def add(self, losses: Sequence[float]) -> None:
        """Adds the losses of one micro-batch's probes, in their order."""
        self._sums = [total + loss for total, loss in zip(self._sums, losses, strict=True)]
        self._count += 1

    def add_centre(self, loss: float) -> None:
        """Adds the loss of one micro-batch at the weights themselves."""
        self._centre = loss if self._centre is None else self._centre + loss

    def _means(self) -> list[float]:
        return [total / self._count for total in self._sums]

    def losses(self) -> tuple[float, ...]:
        """Returns the probes' losses as a record holds them, averaged over micro-batches."""
        return tuple(self._means()[self.aside])

    def centre(self) -> float | None:
        """Returns the loss at the weights, averaged over micro-batches; None if not taken."""
        if self.estimator.one_sided:
            return self._means()[0]
        return None if self._centre is None else self._centre / self._count

    def mirror(self) -> float | None:
        """Returns the loss on the first direction's other side, of one-sided steps that look."""
        taken = len(self.probes) > self.estimator.forwards
        return self._means()[-1] if taken else None
