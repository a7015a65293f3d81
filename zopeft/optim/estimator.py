"""The estimator of a step: where its probes look, and what is made of their losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zopeft.errors import input_error

if TYPE_CHECKING:
    from zopeft.optim.rate import Seen
    from zopeft.optim.record import StepRecord

SIDES = ("two", "one")
MOST_DIRECTIONS = 64


REMEDY = "take sides one and 2 directions or more, or leave it out"


def conflict(directions: int, sides: str, normalise: bool) -> str:
    """Returns why three settings do not go together; "" if they do."""
    if normalise and (directions < 2 or sides != "one"):
        return "divides by the spread of several one-sided directions"
    return ""


@dataclass(frozen=True)
class Estimator:
    """K independent directions a step, each probed on both sides or on one.

    On two sides ``g_k = (L(theta + eps u_k) - L(theta - eps u_k)) / (2 eps)``, in 2 K forward
    passes. On one side ``g_k = (L(theta + eps u_k) - L(theta)) / eps``, in K + 1, which is off
    by ``eps / 2 u_k' H u_k``. The step is ``-(lr / K) sum_k g_k u_k``.

    Normalised, the losses' differences are divided by their spread, ``(L_k - L(theta)) / s``
    with s the population's standard deviation of ``L_k = L(theta + eps u_k)`` over the K
    directions; eps is no part of it, so that the learning rate has other units. Where the
    spread is zero nothing is learned of the step.

    Args:
        directions: K, 1 to `MOST_DIRECTIONS`.
        sides: "two" or "one".
        normalise: Whether differences are divided by their spread.

    Raises:
        InputError: `directions` or `sides` is out of range, or the three do not go together.

    References:
        "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards
        Adam-Scale Speed", 2025: the normalised step. The paper's spread is the sample's
        (K - 1), its code's the population's, as here. FZOO's directions are Rademacher, which
        is an option of its own here (``noise``).
    """

    directions: int = 1
    sides: str = "two"
    normalise: bool = False

    def __post_init__(self) -> None:
        count = self.directions
        if isinstance(count, bool) or not isinstance(count, int):
            raise input_error("directions", "must be a whole number", str(count))
        if not 1 <= count <= MOST_DIRECTIONS:
            raise input_error("directions", f"must be between 1 and {MOST_DIRECTIONS}", count)
        if self.sides not in SIDES:
            raise input_error("sides", "must be 'two' or 'one'", self.sides)
        if not isinstance(self.normalise, bool):
            raise input_error("normalise", "must be true or false", str(self.normalise))
        problem = conflict(count, self.sides, self.normalise)
        if problem:
            raise input_error("normalise", problem, do=REMEDY)

    @property
    def one_sided(self) -> bool:
        """Whether each direction is probed on one side."""
        return self.sides == "one"

    @property
    def forwards(self) -> int:
        """Forward passes of a step: 2 K, or K + 1."""
        return self.directions + 1 if self.one_sided else 2 * self.directions

    @property
    def units(self) -> str:
        """What a learning rate is multiplied by, in words; "" for one direction."""
        spread = " and the spread of their losses over eps" if self.normalise else ""
        return f", times {self.directions} directions{spread}" if self.directions > 1 else ""

    def places(self, eps: float, mirror: bool = False) -> list[tuple[int, float]]:
        """Returns each probe's number of direction and step, in the order that they run in.

        Args:
            eps: Finite-difference step.
            mirror: Whether the first direction is also looked at from its other side.
        """
        if not self.one_sided:
            return [(k, sign * eps) for k in range(self.directions) for sign in (1.0, -1.0)]
        plus = [(k, eps) for k in range(self.directions)]
        return [(0, 0.0), *plus, *([(0, -eps)] if mirror else [])]

    def differences(self, losses: Sequence[float], centre: float | None, eps: float) -> list[float]:
        """Returns ``g_k`` of each direction, [K], before clipping and normalising.

        Args:
            losses: Those of the probes, as a `StepRecord` holds them.
            centre: The loss at the weights themselves.
            eps: Finite-difference step.
        """
        if self.one_sided:
            assert centre is not None
            return [(plus - centre) / eps for plus in losses]
        pairs = zip(losses[::2], losses[1::2], strict=True)
        return [(plus - minus) / (2.0 * eps) for plus, minus in pairs]

    def spread(self, differences: Sequence[float]) -> float:
        """Returns what the ``g_k`` are divided by; 1 where they are not.

        It is ``s / eps``, since the ``g_k`` are differences of losses over eps.
        """
        if not self.normalise:
            return 1.0
        mean = sum(differences) / len(differences)
        return math.sqrt(sum((g - mean) ** 2 for g in differences) / len(differences))

    def projected(self, differences: Sequence[float], spread: float) -> tuple[float, ...]:
        """Returns the projected gradients [K] that the step is made of."""
        found = [g / spread if spread > 0.0 else 0.0 for g in differences]
        return tuple(found) if all(map(math.isfinite, found)) else (0.0,) * len(found)

    def pair(self, record: StepRecord) -> tuple[float, float]:
        """Returns the losses on both sides of the first direction.

        Where the other side was not looked at, or has no finite loss (which makes no bad step,
        since the update does without it), it is put where a straight line has it.
        """
        if not self.one_sided:
            return record.losses[0], record.losses[1]
        assert record.centre is not None
        plus, minus = record.losses[0], record.mirror
        if minus is None or not math.isfinite(minus):
            minus = 2.0 * record.centre - plus
        return plus, minus

    def typical_pair(self, record: StepRecord) -> tuple[float, float]:
        """Returns two losses whose mean and squared difference are those of all directions."""
        if self.directions == 1:
            return self.pair(record)
        grads = self.differences(record.losses, record.centre, record.eps)
        half = record.eps * math.sqrt(sum(g * g for g in grads) / len(grads))
        middle = record.loss if not self.one_sided else sum(self.pair(record)) / 2.0
        return middle + half, middle - half

    def bend(self, record: Seen) -> float | None:
        """Returns ``u' H u``, the mean of the directions whose losses tell; None if none does."""
        centre, losses = record.centre, record.losses
        pairs = list(zip(losses[::2], losses[1::2], strict=False))
        if self.one_sided:
            pairs = [] if record.mirror is None else [(losses[0], record.mirror)]
        if centre is None or not pairs:
            return None
        bends = [(plus + minus - 2.0 * centre) / record.eps**2 for plus, minus in pairs]
        return sum(bends) / len(bends)


PAIR = Estimator()
"""One direction, probed on both sides."""
