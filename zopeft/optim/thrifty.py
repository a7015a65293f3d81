"""lr="auto" from the first step on: what a run's own steps show, and few passes beside them.

The rule is that of `zopeft.optim.rate`: K small steps of ``r = min(q share / h, reach / sqrt(K
G))``. What differs is where h and G come from, and what they cost. There is no first look:

* ``G``, the energy of the projected gradients, is that of the run's own differences. The step
  that is due counts among them before its rate is settled, so that not even the first one goes
  further than its probes have looked.
* ``h`` takes one more forward pass in the steps that look, the first one among them. It too
  counts before the step is made.
* Looks are at most one in twenty of the forward passes of the planned steps: their number up to
  step t goes with the square root of t, for curvature changes most as a run begins. Where
  nobody says how many steps there will be, the first ones look as those of `USUAL` steps do, and
  from there on one pass in twenty is a look.

* The signal share begins with a fixed number or, if asked, with that of the first batches' examples
  where losses tell it (`zopeft.optim.signal`), and from `LEAST_FALL` steps on is that of the fall
  of the loss.

A mean over n looks is a noisy measure of h, and too long a step costs more than one too short,
so that ``h = (1 + CAUTION / sqrt(n)) max(slow, fast)``, n the bends that were seen, of all
directions. The running means begin as plain ones.

A step with a spike (`zopeft.optim.clipping.SPIKE`), as a broken batch makes it, is no measure of
those to come: it enters G `tamed`, and h and the fall of the loss not at all. How far it goes is
for clipping to say, so that without clipping it counts in full.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from zopeft.optim.clipping import ENTERS, KNOWN, tamed
from zopeft.optim.estimator import PAIR, Estimator
from zopeft.optim.falls import Falls
from zopeft.optim.measured import Measured
from zopeft.optim.rate import LEAST_PURE, LOOSEST, SHARE, Seen, shared
from zopeft.optim.record import StepRecord
from zopeft.optim.signal import NOTE, Signal

PART = 0.05
"""Most of a run's forward passes that measure; one look at the least."""
USUAL = 100
"""Steps that a run is taken to have where nobody says."""
LEAST_FALL, NEWEST = 30, 0.05
"""Steps that tell a fall of the loss, and the part of the newest share in the running one."""
LEAST_LEFT = 0.1
"""Least part of the looks that is left where the run began with passes that measured."""
FREE, CLIMB = 10, 1.03
"""First steps whose rate may grow as it likes, and the most that it grows by a step later."""


class ThriftyRate:
    """The learning rate of the step that is due, by its own losses and those before.

    Args:
        reach: Longest step along u, in the units of eps.
        share: Signal share to begin with.
        fallback: Learning rate where the loss does not change along any direction; and, without
            a look ahead, what schedules multiply.
        eps: Finite-difference step; matters to one-sided estimators alone.
        steps: Steps that the run is planned to have; 0 where nobody knows.
        curvature: ``u' H u`` of a look ahead; 0 without one.
        energy: ``projected_grad^2`` of it.
        bends: Directions of it.
        estimator: How a step's directions are probed.
        taming: Whether spikes are told from other steps, 1 or 0.
        signal: Whether the examples of batches tell the share until the loss does, 1 or 0.

    Attributes:
        lr: Learning rate of the last step, K r, or what is known before the first one; if
            normalised, before the spread.
        first: What schedules multiply: the learning rate that a look ahead told, else `fallback`.
        began: Learning rate of the first step, before any schedule; `first` until it is made.
    """

    def __init__(
        self,
        reach: float,
        share: float = SHARE,
        fallback: float = 0.0,
        eps: float = 0.0,
        steps: int = 0,
        curvature: float = 0.0,
        energy: float = 0.0,
        bends: int = 0,
        estimator: Estimator = PAIR,
        taming: float = 0.0,
        signal: float = 0.0,
    ) -> None:
        self.start = {
            "reach": reach,
            "share": share,
            "fallback": fallback,
            "eps": eps,
            "steps": steps,
            "curvature": curvature,
            "energy": energy,
            "bends": bends,
            "taming": taming,
            "signal": signal,
        }
        self.estimator = estimator
        self.share, self.fallback = share, fallback
        self._eps, self._reach = eps, reach
        self._steps, self._looked = 0, 2 * bends + 1 if bends else 0
        self._falls, self._most, self._left = Falls(estimator), math.inf, 1.0
        self._signal = Signal()
        self.measured = Measured()
        if bends:
            self._ahead(curvature, energy, bends)
        self.lr = self._asked(self.measured) if bends else fallback
        self.first = self.began = self.lr * self._unit(self.measured, self.measured.spread)

    def _ahead(self, curvature: float, energy: float, bends: int) -> None:
        """Takes in a look ahead, as if it had been a step."""
        count = self.estimator.directions
        # Of K independent numbers, the population's variance is (K - 1) / K of the true one.
        spread = math.sqrt(energy * (count - 1) / count) if self.estimator.normalise else 1.0
        if self.estimator.one_sided:
            energy += (self._eps * curvature / 2.0) ** 2
        self.measured = Measured(energy=energy, spread=spread, steps=1).looked(curvature, bends)

    def take(self, curvature: float, energy: float, bends: float, passes: float) -> None:
        """Takes in what was measured for other ends; looks pay for it.

        Args:
            curvature: Mean of ``u' H u`` of directions like those of the run.
            energy: Mean of ``projected_grad^2`` of them.
            bends: Bends that `curvature` is a mean over; 0 where there were none to be seen.
            passes: Forward passes that it took.
        """
        if bends:
            self._ahead(curvature, energy, int(bends))
        most = PART * self.estimator.forwards * (int(self.start["steps"]) or USUAL)
        self._left = max(LEAST_LEFT, 1.0 - passes / most)

    def turn(self) -> None:
        """Readies the rate for directions of another kind than those of the steps so far.

        How the loss has fallen, and how far examples agreed, tells nothing of them, and their rate
        may be another at once.
        """
        self._falls, self._most = Falls(self.estimator), math.inf
        self._signal = Signal()

    @property
    def listens(self) -> bool:
        """Whether it asks how far the examples of the next batch agree."""
        return bool(self.start["signal"]) and self._falls.count + 1 < LEAST_FALL

    @property
    def factor(self) -> float:
        """The learning rate over the first one, of a step that shows nothing new."""
        return self._over_first(self.lr, self.measured, self.measured.spread)

    def factor_of(self, seen: Seen) -> float:
        """Returns the learning rate of a step with these losses over the first one."""
        measured, spread, _ = self._with(seen)
        return self._over_first(self._bounded(measured), measured, spread)

    def _over_first(self, lr: float, measured: Measured, spread: float) -> float:
        return lr * self._unit(measured, spread) / self.first if self.first else 1.0

    def _unit(self, measured: Measured, spread: float) -> float:
        """What the learning rate is a multiple of: 1, or the spread as far as it is trusted."""
        if not self.estimator.normalise or measured.spread <= 0.0:
            return 1.0
        return min(measured.spread, LOOSEST * spread)

    def due(self) -> bool:
        """Whether the step that is due is to look at the curvature."""
        planned, forwards = int(self.start["steps"]), self.estimator.forwards
        return self._looked < looks_until(self._steps + 1, planned, forwards, self._left)

    def _with(self, seen: Seen) -> tuple[Measured, float, bool]:
        """Takes in a step's losses.

        Returns:
            What is known with them, what the step's differences are divided by, and whether one of
            them is a spike.
        """
        estimator, measured = self.estimator, self.measured
        needed = seen.losses if seen.centre is None else (*seen.losses, seen.centre)
        if not needed or not all(map(math.isfinite, seen.losses)):
            return measured, measured.spread, False
        if estimator.one_sided and (seen.centre is None or not math.isfinite(seen.centre)):
            return measured, measured.spread, False
        grads = estimator.differences(seen.losses, seen.centre, seen.eps)
        spread = estimator.spread(grads)
        counts = self._tamed(grads)
        if counts != grads:
            return measured.after(counts, min(spread, ENTERS * measured.spread)), spread, True
        # A method may take the loss that tells the bend in other steps too, for its own ends.
        bend = estimator.bend(seen) if self.due() else None
        count = 1 if estimator.one_sided else estimator.directions
        return measured.after(grads, spread).looked(bend, count), spread, False

    def _tamed(self, grads: list[float]) -> list[float]:
        """Returns what differences enter the running means as, [K]."""
        if not self.start["taming"] or self.measured.steps < KNOWN:
            return grads
        size = math.sqrt(self.measured.energy)
        return [tamed(grad, size) for grad in grads]

    def note(self, record: StepRecord) -> None:
        """Takes note of a step that has been applied, or skipped for its loss."""
        due, (measured, spread, spike) = self.due(), self._with(record)
        if not self.measured.steps or not self._steps:
            self.began = self.first * self.factor_of(record)
        self._looked += due
        self._steps += 1
        if record.skipped:
            self.lr *= 0.5
            self._most = self.lr
            return
        self.lr = self._bounded(measured)
        self.measured = measured
        if spike:
            return
        self._falls.note(record, spread)
        self._share(record, measured)
        self._most = self.lr * CLIMB if self._steps >= FREE else math.inf

    def _share(self, record: StepRecord, measured: Measured) -> None:
        """Takes in what a step tells of the signal share: its examples first, the loss later."""
        noted, pure = (record.notes or {}).get(NOTE), self._pure(measured)
        if self._falls.count >= LEAST_FALL:
            window = max(LEAST_FALL, self._steps // 3)
            seen = self._falls.share(window, measured.curvature, pure)
            self.share = shared(self.share, seen, NEWEST)
        elif noted is not None and self.start["signal"]:
            grads = self.estimator.differences(record.losses, record.centre, record.eps)
            self._signal.note(float(noted[0]), grads)
            self.share = self._signal.share(self.start["share"], pure)

    def _bounded(self, measured: Measured) -> float:
        return min(self._most, self._asked(measured))

    def _asked(self, measured: Measured) -> float:
        """``K min(q share / h, reach / sqrt(K G))``."""
        curvature, count = measured.curvature, self.estimator.directions
        bounds = []
        if curvature > 0.0:
            bounds.append(self.share * self._pure(measured) / curvature)
        if measured.energy > 0.0:
            bounds.append(self._reach / math.sqrt(count * measured.energy))
        return count * (min(bounds) if bounds else self.fallback)

    def _pure(self, measured: Measured) -> float:
        """q: which share of the differences' energy is not that of one-sided curvature."""
        if not self.estimator.one_sided or measured.energy <= 0.0 or measured.curvature <= 0.0:
            return 1.0
        return max(LEAST_PURE, 1.0 - (self._eps * measured.curvature / 2.0) ** 2 / measured.energy)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later steps depend on, as numbers and lists."""
        return {
            "start": dict(self.start),
            "share": self.share,
            "measured": asdict(self.measured),
            "steps": self._steps,
            "looked": self._looked,
            **self._falls.state_dict(),
            "lr": self.lr,
            "most": self._most,
            "began": self.began,
            "left": self._left,
            "signal": self._signal.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], estimator: Estimator = PAIR) -> ThriftyRate:
        """Returns what `state_dict` was taken of.

        Args:
            state: The state.
            estimator: How a step's directions are probed.
        """
        rate = cls(**state["start"], estimator=estimator)
        rate.share, rate.lr = float(state["share"]), float(state["lr"])
        rate.measured = Measured(**state["measured"])
        rate._steps, rate._looked = int(state["steps"]), int(state["looked"])
        rate._most, rate.began = float(state["most"]), float(state["began"])
        rate._left = float(state.get("left", 1.0))
        rate._falls.load_state_dict(state)
        if "signal" in state:
            rate._signal.load_state_dict(state["signal"])
        return rate


def looks_until(steps: int, planned: int, forwards: int, left: float = 1.0) -> int:
    """Returns the most looks, a forward pass each, that so many first steps may take.

    Args:
        steps: The first steps, >= 1.
        planned: Steps of the run; 0 where nobody knows.
        forwards: Forward passes of a step.
        left: Part of the usual number that a look ahead has left.
    """
    planned, each = planned or USUAL, left * PART * forwards
    early = each * math.sqrt(planned * min(steps, planned))
    # What is left of a product of decimals must not cost a look.
    return max(1, math.floor(max(early, each * steps) + 1e-9))
