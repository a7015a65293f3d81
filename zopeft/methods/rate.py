"""lr="auto" while a run goes on: the learning rate that its own probes ask for.

One step along ``u`` changes the loss, to second order and on average, by ``-lr A + lr^2 / 2
* G h`` with ``A`` the signal (squared size of the mean projected gradient), ``G =
E[projected_grad^2]`` and ``h = E[u' H u]``. The best lr is ``share / h``, ``share = A / G``.
None of the three stays what it was at the start: curvature rises several-fold in the first
steps and falls as the model becomes sure, and the share falls as the loss does. So all are
measured as the run goes:

* ``h``: every few steps one more forward pass, without a perturbation, gives ``u' H u =
  (loss_plus + loss_minus - 2 loss) / eps^2``.
* ``share``: what the loss has really lost in a step, over the last third of the run, is
  ``lr A - lr^2 / 2 * G h``; solved for ``A / G`` it is ``fall / (lr G) + lr h / 2``.
* a step does not go much further than its probes have looked: ``lr <= reach / sqrt(G)``,
  the reach being eps or twice that (`zopeft.methods.defaults.default_reach`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zopeft.methods.record import StepRecord

SHARE = 0.2
"""Share of a gradient's energy that is taken for signal until the run has shown its own."""
SHARE_LEAST, SHARE_MOST = 0.1, 0.5
"""Bounds of the share: the fall of the loss is a noisy measure, and steps beyond half of the
inverse curvature diverge."""
GROWTH = 1.15
"""Most that the learning rate grows by from one look at the curvature to the next."""
SLOW, FAST, ENERGY = 0.9, 0.6, 0.9
"""Decays of the running curvatures (the larger one counts) and of the running energy."""
EARLY, LOOK_EARLY, LOOK_LATE = 100, 5, 10
"""Steps that count as early, and how often the curvature is looked at then and later."""
LEAST_WINDOW, MOST_WINDOW = 50, 1000
"""Steps over which the fall of the loss is measured: a third of the run, within these."""


class RunningRate:
    """The learning rate of the step that is due, from what the steps before have shown.

    Args:
        curvature: ``u' H u`` of the first look; 0 or less where nothing bent.
        energy: ``projected_grad^2`` of the first look.
        reach: Longest step along u, in the units of eps.
        share: Signal share to begin with.
        fallback: Learning rate where the loss does not change along any direction.
    """

    def __init__(
        self,
        curvature: float,
        energy: float,
        reach: float,
        share: float = SHARE,
        fallback: float = 0.0,
    ) -> None:
        self.start = {
            "curvature": curvature,
            "energy": energy,
            "reach": reach,
            "share": share,
            "fallback": fallback,
        }
        self.share, self.fallback = share, fallback
        self._slow = self._fast = curvature
        self._energy = energy
        self._reach = reach
        self._steps = 0
        self._losses: list[float] = []
        self._rates: list[float] = []
        self._squares: list[float] = []
        self.lr = self.first = self._asked()

    @property
    def factor(self) -> float:
        """The learning rate over the first one."""
        return self.lr / self.first if self.first else 1.0

    def due(self) -> bool:
        """Whether the step that is due is to look at the curvature."""
        return self._steps % (LOOK_EARLY if self._steps < EARLY else LOOK_LATE) == 0

    def note(self, record: StepRecord) -> None:
        """Takes note of a step that has been applied, or skipped for its loss."""
        due = self.due()
        self._steps += 1
        if record.skipped:
            self.lr *= 0.5
            return
        plus, minus = record.losses[:2]
        grad = (plus - minus) / (2.0 * record.eps)
        self._energy = ENERGY * self._energy + (1.0 - ENERGY) * grad * grad
        self._losses.append((plus + minus) / 2.0)
        self._rates.append(sum(record.lr) / len(record.lr))
        self._squares.append(record.projected_grads[0] ** 2)
        for kept in (self._losses, self._rates, self._squares):
            del kept[:-MOST_WINDOW]
        # A method may take the loss at the weights in other steps too, for its own ends.
        if due and record.centre is not None and math.isfinite(record.centre):
            self._look((plus + minus - 2.0 * record.centre) / record.eps**2)

    def _look(self, bend: float) -> None:
        """Takes a curvature along one direction, and settles the learning rate anew."""
        self._slow = SLOW * self._slow + (1.0 - SLOW) * bend
        self._fast = FAST * self._fast + (1.0 - FAST) * bend
        if len(self._losses) >= LEAST_WINDOW:
            seen = min(SHARE_MOST, max(SHARE_LEAST, self._seen_share()))
            self.share = 0.8 * self.share + 0.2 * seen
        self.lr = min(self.lr * GROWTH, self._asked())

    def _asked(self) -> float:
        """``min(share / h, reach / sqrt(G))``."""
        curvature = max(self._slow, self._fast)
        bounds = []
        if curvature > 0.0:
            bounds.append(self.share / curvature)
        if self._energy > 0.0:
            bounds.append(self._reach / math.sqrt(self._energy))
        return min(bounds) if bounds else self.fallback

    def _seen_share(self) -> float:
        """``fall / (lr G) + lr h / 2``, the fall of the loss by least squares."""
        count = min(len(self._losses), max(LEAST_WINDOW, self._steps // 3))
        losses = np.array(self._losses[-count:])
        places = np.arange(count) - (count - 1) / 2.0
        fall = -float((places * losses).sum() / (places * places).sum())
        rate = float(np.mean(self._rates[-count:]))
        energy = float(np.mean(self._squares[-count:]))
        curvature = max(self._slow, self._fast, 0.0)
        if rate * energy <= 0.0:
            return self.share
        return max(0.0, fall) / (rate * energy) + 0.5 * rate * curvature

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later steps depend on, as numbers and lists."""
        return {
            "start": dict(self.start),
            "share": self.share,
            "slow": self._slow,
            "fast": self._fast,
            "energy": self._energy,
            "steps": self._steps,
            "losses": list(self._losses),
            "rates": list(self._rates),
            "squares": list(self._squares),
            "lr": self.lr,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunningRate:
        """Returns what `state_dict` was taken of."""
        rate = cls(**state["start"])
        rate.share, rate.lr = float(state["share"]), float(state["lr"])
        rate._slow, rate._fast = float(state["slow"]), float(state["fast"])
        rate._energy, rate._steps = float(state["energy"]), int(state["steps"])
        rate._losses, rate._rates = list(state["losses"]), list(state["rates"])
        rate._squares = list(state["squares"])
        return rate
