"""The estimate of a step that has not been applied yet."""

from __future__ import annotations

from zopeft.engine import Direction
from zopeft.methods.record import StepRecord


class Pending:
    """The losses of the step under way, summed over micro-batches.

    Args:
        direction: The step's direction.
        eps: Its finite-difference step.
        recorded: The step's record where it is repeated from a journal.
    """

    def __init__(
        self, direction: Direction, eps: float, recorded: StepRecord | None = None
    ) -> None:
        self.direction, self.eps, self.recorded = direction, eps, recorded
        self._plus = self._minus = 0.0
        self._count = 0
        self._centre: float | None = None

    def add(self, plus: float, minus: float) -> None:
        """Adds the two losses of one micro-batch."""
        self._plus += plus
        self._minus += minus
        self._count += 1

    def add_centre(self, loss: float) -> None:
        """Adds the loss of one micro-batch at the weights themselves."""
        self._centre = loss if self._centre is None else self._centre + loss

    def centre(self) -> float | None:
        """Returns the loss at the weights, averaged over micro-batches; None if not taken."""
        return None if self._centre is None else self._centre / self._count

    def losses(self) -> tuple[float, float]:
        """Returns loss_plus and loss_minus, averaged over micro-batches."""
        return self._plus / self._count, self._minus / self._count
