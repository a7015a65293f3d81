"""The course of a tuning run, as its probes show it: what state-dependent scales read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SPAN = 20
"""Steps that a running mean looks back on, and that the run's first values are taken over."""
_TINY = 1e-12
_WIDEST = math.log(1e3)


@dataclass(frozen=True)
class Reading:
    """Where a run stands; NaN for what has not been seen.

    Attributes:
        log_loss: Logarithm of the running mean of the probes' losses.
        loss_share: Logarithm of that mean's share of the run's first losses; 0 at the start.
        change: Logarithm of the running root mean square of ``loss_plus - loss_minus``, as a
            share of its first value.
        bend: Logarithm of the running mean of ``loss_plus + loss_minus - 2 loss_zero``, as a
            share of its first value; both positive, else the end of the range.
    """

    log_loss: float = math.nan
    loss_share: float = math.nan
    change: float = math.nan
    bend: float = math.nan


class Course:
    """Running means over the steps of a run, in double precision.

    ``m <- m + (x - m) / min(t, SPAN)``: the plain mean of the first `SPAN` steps, which is
    kept as the first value, and an exponential mean from then on. It is a function of the
    losses alone, so that steps taken from a journal leave the same bits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._now = {"loss": 0.0, "square": 0.0, "bend": 0.0}
        self._first = dict(self._now)

    def note(self, plus: float, minus: float, zero: float = math.nan) -> None:
        """Takes note of a step.

        Args:
            plus: Loss at weights + eps u.
            minus: Loss at weights - eps u.
            zero: Loss at the weights; NaN where it is not known. One that is not finite leaves
                the mean as it was, which it would spoil for the rest of the run.
        """
        self.count += 1
        rate = 1.0 / min(self.count, SPAN)
        seen = {
            "loss": 0.5 * (plus + minus),
            "square": (plus - minus) ** 2,
            "bend": plus + minus - 2.0 * zero,
        }
        for name, value in seen.items():
            if self.count > 1 and not math.isfinite(value):
                continue
            self._now[name] += rate * (value - self._now[name])
        if self.count <= SPAN:
            self._first = dict(self._now)

    def reading(self) -> Reading:
        """Returns where the run stands."""
        if not self.count:
            return Reading()
        now, first = self._now, self._first
        bend = math.nan if math.isnan(now["bend"]) else share(now["bend"], first["bend"])
        return Reading(
            log_loss=math.log(max(now["loss"], _TINY)),
            loss_share=share(now["loss"], first["loss"]),
            change=0.5 * share(now["square"], first["square"]),
            bend=bend,
        )

    def state_dict(self) -> dict[str, float]:
        """Returns the count and the means."""
        first = {f"first_{name}": value for name, value in self._first.items()}
        return {"count": self.count, **self._now, **first}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes what `state_dict` gave."""
        self.count = int(state["count"])
        self._now = {name: float(state[name]) for name in self._now}
        self._first = {name: float(state[f"first_{name}"]) for name in self._first}


def share(now: float, first: float) -> float:
    """Returns ``log(now / first)`` within a factor of a thousand; 0 where both are nothing."""
    if max(now, first) <= _TINY:
        return 0.0
    found = math.log(max(now, _TINY)) - math.log(max(first, _TINY))
    return max(-_WIDEST, min(_WIDEST, found))
