"""Turns: first steps that serve one sort of blocks each, and what they show of it.

Probes that only measure cost passes and look at one batch. Steps cost none that would not be
made anyway: while sorts take turns, a step has the whole budget on one of them, and goes downhill
along it. The square of its projected gradient tells the sort's E and, where it looks, its bend the
sort's h (`zopeft.optim.budget`), each step on a batch of its own. Which sort a step served is told
by its scales, so a record tells all of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zopeft.optim.clipping import SPIKE
from zopeft.optim.estimator import Estimator
from zopeft.optim.record import StepRecord
from zopeft.optim.thrifty import PART, USUAL

MOST, LEAST = 48, 8
"""Steps that take turns, and the fewest that tell anything."""
SHORTEST = 5
"""A run has so many times the steps that take turns, at the least."""
FIRST_LOOKS, LOOKS = 4, 0.4
"""Looks at the curvature that turns take at the least, and as a part of all that a run has."""


def turns_of(planned: int) -> int:
    """Returns how many steps of a run take turns.

    Args:
        planned: Its steps; 0 where nobody knows.
    """
    count = min(MOST, planned // SHORTEST) if planned else MOST
    return count if count >= LEAST else 0


@dataclass
class Tally:
    """What a sort's turns have shown.

    Attributes:
        taken: Its turns, those with a loss that is not finite among them.
        squares: The mean of ``projected_grad^2`` over the directions, of each.
        bends: ``u' H u``, of each that has looked; NaN for one that has not.
    """

    taken: int = 0
    squares: list[float] = field(default_factory=list)
    bends: list[float] = field(default_factory=list)

    def kept(self) -> list[tuple[float, float]]:
        """Returns squares and bends without those of broken batches."""
        usual = statistics.median(self.squares) if self.squares else 0.0
        pairs = zip(self.squares, self.bends, strict=True)
        return [pair for pair in pairs if pair[0] <= SPIKE**2 * usual]

    @property
    def energy(self) -> float:
        """E; 0 where nothing was seen."""
        kept = self.kept()
        return statistics.fmean(square for square, _ in kept) if kept else 0.0

    @property
    def curvature(self) -> float:
        """h; 0 where no bend was seen."""
        bends = [bend for _, bend in self.kept() if not math.isnan(bend)]
        return max(0.0, statistics.fmean(bends)) if bends else 0.0


class Turns:
    """The turns of a run.

    Args:
        names: Sorts that take turns.
        estimator: How a step's directions are probed.

    Attributes:
        tallies: What was seen of each sort, by name.
        looks: Looks that were taken for the turns alone: the step had no other end for them.
    """

    def __init__(self, names: Sequence[str], estimator: Estimator) -> None:
        self.tallies = {name: Tally() for name in sorted(names)}
        self.estimator = estimator
        self.looks = 0

    @property
    def taken(self) -> int:
        """Turns so far."""
        return sum(tally.taken for tally in self.tallies.values())

    @property
    def bends(self) -> int:
        """Bends that were seen, of all directions of all turns that count."""
        seen = sum(not math.isnan(bend) for one in self.tallies.values() for _, bend in one.kept())
        return seen * (1 if self.estimator.one_sided else self.estimator.directions)

    def over(self, planned: int) -> bool:
        """Whether all turns have been taken.

        Args:
            planned: Steps of the run; 0 where nobody knows.
        """
        return self.taken >= turns_of(planned)

    @property
    def next(self) -> str:
        """The sort whose turn it is."""
        return min(self.tallies, key=lambda name: self.tallies[name].taken)

    def looking(self, planned: int) -> bool:
        """Whether the turn that is due is to look at the curvature.

        Every other round does, as long as there are looks, so that all sorts are seen as often; of
        one-sided steps every round, for without its look a turn tells nothing.

        Args:
            planned: Steps of the run; 0 where nobody knows.
        """
        sorts = len(self.tallies)
        round_, forwards = self.taken // sorts, self.estimator.forwards
        most = max(FIRST_LOOKS, int(LOOKS * PART * forwards * (planned or USUAL)))
        every = 1 if self.estimator.one_sided else 2
        return round_ % every == 0 and (round_ // every + 1) * sorts <= most

    def note(self, name: str, record: StepRecord, asked: bool) -> None:
        """Takes note of a sort's turn.

        Args:
            name: The sort.
            record: The step's record.
            asked: Whether it would have looked at the curvature without a turn.
        """
        tally, estimator = self.tallies[name], self.estimator
        tally.taken += 1
        looked = (record.mirror if estimator.one_sided else record.centre) is not None
        self.looks += looked and not asked
        if record.skipped:
            return
        bend = estimator.bend(record) if looked else None
        if estimator.one_sided:
            # Half a bend is in a one-sided difference; what is left of a turn that has looked.
            if bend is None or not math.isfinite(bend):
                return
            plus, minus = estimator.pair(record)
            grads = [(plus - minus) / (2.0 * record.eps)]
        else:
            grads = estimator.differences(record.losses, record.centre, record.eps)
        tally.squares.append(statistics.fmean(grad * grad for grad in grads))
        tally.bends.append(math.nan if bend is None or not math.isfinite(bend) else bend)

    def state_dict(self) -> dict[str, Any]:
        """Returns what later steps depend on."""
        return {
            "looks": self.looks,
            "tallies": {
                name: {"taken": one.taken, "squares": list(one.squares), "bends": list(one.bends)}
                for name, one in self.tallies.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.looks = int(state["looks"])
        self.tallies = {
            name: Tally(int(one["taken"]), list(one["squares"]), list(one["bends"]))
            for name, one in state["tallies"].items()
        }
