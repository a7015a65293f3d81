"""The pace of a run: its learning rate, given or running, and what the param groups show of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zopeft.errors import input_error
from zopeft.optim.estimator import Estimator
from zopeft.optim.learning_rate import FirstLook
from zopeft.optim.rate import RunningRate, Seen
from zopeft.optim.shown_rate import ShownRate
from zopeft.optim.thrifty import ThriftyRate

Groups = list[dict[str, Any]]
"""An optimizer's param groups."""


class Pace:
    """The learning rate of a run, and where it comes from.

    Args:
        lr: The learning rate, or "auto" for one that is settled by `start` and then runs.
        estimator: How a step's directions are probed.

    Attributes:
        auto: Whether the rate is still to be settled.
        running: The running rate; None for one that was given.
        shown: What makes the param groups tell the rate of the step.
        guarded: Whether a schedule knows of the running rate (`zopeft.optim.shown_rate.guard`).
        reason: Where the rate comes from, in words.
    """

    def __init__(self, lr: float | str, estimator: Estimator) -> None:
        self.auto = lr == "auto"
        self.estimator = estimator
        self.running: RunningRate | ThriftyRate | None = None
        self.shown, self.guarded = ShownRate(), False
        self.reason = "waiting for the first batch" if self.auto else "given"

    def set(self, groups: Groups, lr: float) -> None:
        """Puts another first rate into the groups, also where a schedule looks for it."""
        self.shown.hide(groups)
        for group in groups:
            group["lr"] = lr
            if "initial_lr" in group:
                group["initial_lr"] = lr

    def take(self, groups: Groups, start: dict[str, float] | None, lr: float) -> None:
        """Takes up the rate of a run that began elsewhere; see `ZerothOrder.begin_rate`."""
        self.running = (
            None if start is None else self._kind(start)(**start, estimator=self.estimator)
        )
        self.set(groups, lr)
        self.auto, self.reason = False, "as in the journal"

    @staticmethod
    def _kind(start: dict[str, Any]) -> Any:
        """Returns which rate begins so: runs go on as they began."""
        return ThriftyRate if "steps" in start else RunningRate

    def settled(self, groups: Groups) -> float | None:
        """Returns the rate that the run begins with; None where it is still to be settled.

        Raises:
            InputError: There is a schedule already, which knows of no learning rate.
        """
        if not self.auto:
            given = float(groups[0]["lr"])
            return given if self.running is None else self.running.first
        if any("initial_lr" in group for group in groups):
            raise input_error(
                "lr",
                "a schedule was made before 'auto' was settled, and would keep it at",
                0.0,
                "call calibrate(closure) of the optimizer first, then make the schedule",
            )
        return None

    def start(
        self,
        groups: Groups,
        reach: float,
        share: tuple[float, str],
        fallback: float,
        eps: float,
        steps: int,
        look: FirstLook | None = None,
        taming: bool = False,
        examples: bool = False,
    ) -> float:
        """Settles where the rate begins; returns what schedules multiply.

        Args:
            groups: The param groups.
            reach: Longest step along u, in the units of the weights.
            share: The signal share to begin with, and where it comes from.
            fallback: The rate where the loss does not change along any direction.
            eps: Finite-difference step.
            steps: Steps that are planned; 0 where nobody knows.
            look: What the loss does along random directions; None without a look ahead.
            taming: Whether spikes are told from other steps.
            examples: Whether the first batches' examples tell the share.
        """
        part, origin = share
        ahead = (0.0, 0.0, 0) if look is None else (look.curvature, look.energy, look.directions)
        given = (reach, part, fallback, eps, steps, *ahead, self.estimator, float(taming))
        self.running = ThriftyRate(*given, float(examples))
        self.set(groups, self.running.first)
        self.auto = False
        told = f"signal share {part:.2g}{origin}{', then by examples,' if examples else ''}"
        self.reason = (seen(told) if look is None else look.reason(told)) + self.estimator.units
        return self.running.first

    def show(self, groups: Groups, losses: Seen) -> None:
        """Has the groups tell the rate of a step with these losses."""
        if self.running is not None:
            self.shown.show(groups, self.running.factor_of(losses))

    def scheduled(self, groups: Groups) -> bool:
        """Whether a schedule is at work that `zopeft.optim.shown_rate.guard` was not told of.

        Between two steps it must find the rate that it multiplies.
        """
        return not self.guarded and "initial_lr" in groups[0]

    @contextmanager
    def saved(self, groups: Groups) -> Iterator[dict[str, Any]]:
        """Gives what `load` needs, while the groups are as a checkpoint holds them."""
        with self.shown.hidden(groups) as showing:
            yield {
                "auto": self.auto,
                "rate": None if self.running is None else self.running.state_dict(),
                "lr_reason": self.reason,
                "shown": self.shown.state_dict() | {"showing": showing},
            }

    def load(self, groups: Groups, state: dict[str, Any]) -> None:
        """Takes what `saved` gave, with groups that were saved inside of it."""
        self.auto, self.reason = state["auto"], state["lr_reason"]
        rate = state.get("rate")
        self.running = None
        if rate is not None:
            self.running = self._kind(rate["start"]).from_state(rate, self.estimator)
        usual = 1.0 if self.running is None else self.running.factor
        # Checkpoints of before groups told the rate hold it as they do now, without the factor.
        before = {"factor": usual, "showing": not self.scheduled(groups)}
        self.shown = ShownRate.from_state(state.get("shown", before), groups)


def seen(share: str) -> str:
    """Returns where a learning rate comes from that the run's own steps tell, in few words.

    The probes' reach over the gradient bounds it (`zopeft.optim.rate`).

    Args:
        share: The signal share, in words.
    """
    return f"auto: {share} over curvature"
