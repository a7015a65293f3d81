"""lr="auto" while a run goes on: the learning rate that its own probes ask for.

One step along ``u`` changes the loss, to second order and on average, by ``-lr A + lr^2 / 2
* G h`` with ``A`` the signal (squared size of the mean projected gradient), ``G =
E[projected_grad^2]`` and ``h = E[u' H u]``. The best lr is ``share / h``, ``share = A / G``.
None of the three stays what it was at the start: curvature rises several-fold in the first
steps and falls as the model becomes sure, and the share falls as the loss does. So all are
measured as the run goes:

* ``h``: every few steps one more forward pass, without a perturbation, gives ``u' H u =
  (loss_plus + loss_minus - 2 loss) / eps^2``. (One-sided steps have that loss, and look from
  the other side of their first direction instead.)
* ``share``: what the loss has really lost in a step, over the last third of the run, is
  ``lr A - lr^2 / 2 * G h``; solved for ``A / G`` it is ``fall / (lr G) + lr h / 2``.
* a step does not go much further than its probes have looked: ``lr <= reach / sqrt(G)``,
  the reach being eps or twice that (`zopeft.optim.defaults.default_reach`).

K directions at lr are K small steps of ``r = lr / K``, nearly independent where there are many
more weights than directions. So ``r = min(share / h, reach / sqrt(K G))``, the loss falls by
``K (r A - r^2 / 2 G h)`` a step, and the share seen is ``fall / (K r G) + r h / 2``.

One-sided differences are off by ``eps / 2 u' H u``, which is noise to the step but part of
their energy. The share stays that of what is left, ``G' = q G`` with ``q = 1 - (eps h / 2)^2 /
G``: ``r = q share / h``, and the share seen is ``fall / (K r q G) + r h / (2 q)``.

Normalised steps divide by the spread s of the K differences, so that ``r = lr / (K s)`` of
their own s. ``lr = K r min(m, 2 s)`` with m the running mean of s: of a step whose few losses
happen to agree, r is at most doubled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zopeft.optim.estimator import PAIR, Estimator
from zopeft.optim.record import StepRecord

SHARE = 0.2
"""Share of a gradient's energy that is taken for signal until the run has shown its own."""
SHARE_LEAST, SHARE_MOST = 0.1, 0.5
"""Bounds of the share: the fall of the loss is a noisy measure, and steps beyond half of the
inverse curvature diverge."""
GROWTH = 1.15
"""Most that the learning rate grows by from one look at the curvature to the next."""
SLOW, FAST, ENERGY = 0.9, 0.6, 0.9
"""Decays of the running curvatures (the larger one counts), of running energy and spread."""
LEAST_PURE = 0.1
"""Bound of q, the energy's share that is not one-sided curvature: h is a noisy measure."""
LOOSEST = 2.0
"""How many times as long as usual a small spread may make a normalised step."""
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
        eps: Finite-difference step; matters to one-sided estimators alone.
        estimator: How a step's directions are probed.

    Attributes:
        lr: Learning rate of the step that is due, K r; if normalised, before the spread.
        first: Learning rate that the run begins with.
    """

    def __init__(
        self,
        curvature: float,
        energy: float,
        reach: float,
        share: float = SHARE,
        fallback: float = 0.0,
        eps: float = 0.0,
        estimator: Estimator = PAIR,
    ) -> None:
        self.start = {
            "curvature": curvature,
            "energy": energy,
            "reach": reach,
            "share": share,
            "fallback": fallback,
            "eps": eps,
        }
        self.estimator = estimator
        self.share, self.fallback = share, fallback
        self._slow = self._fast = curvature
        self._energy = energy
        if estimator.one_sided:
            self._energy += (eps * curvature / 2.0) ** 2
        self._eps, self._reach = eps, reach
        # Of K independent numbers, the population's variance is (K - 1) / K of the true one.
        count = estimator.directions
        self._spread = math.sqrt(energy * (count - 1) / count)
        self._steps = 0
        self._losses: list[float] = []
        self._rates: list[float] = []
        self._squares: list[float] = []
        self.lr = self._asked()
        self.first = self.lr * self._unit(self._spread)

    @property
    def factor(self) -> float:
        """The learning rate over the first one, for a spread as it usually is."""
        return self.factor_at(self._spread)

    def factor_at(self, spread: float) -> float:
        """Returns the learning rate of a step over the first one.

        Args:
            spread: What the step's differences are divided by; 1 where they are not.
        """
        return self.lr * self._unit(spread) / self.first if self.first else 1.0

    def _unit(self, spread: float) -> float:
        """What the learning rate is a multiple of: 1, or the spread as far as it is trusted."""
        if not self.estimator.normalise or self._spread <= 0.0:
            return 1.0
        return min(self._spread, LOOSEST * spread)

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
        estimator, count = self.estimator, self.estimator.directions
        grads = estimator.differences(record.losses, record.centre, record.eps)
        spread = estimator.spread(grads)
        gain = sum((1.0 - ENERGY) * grad * grad for grad in grads) / count
        self._energy = ENERGY * self._energy + gain
        self._spread = ENERGY * self._spread + (1.0 - ENERGY) * spread
        centre = record.centre if estimator.one_sided else None
        self._losses.append(record.loss if centre is None else centre)
        rate = sum(record.lr) / len(record.lr) / count
        self._rates.append(rate / spread if spread > 0.0 else 0.0)
        squares = sum(grad**2 for grad in record.projected_grads) / count
        self._squares.append(squares * spread**2)
        for kept in (self._losses, self._rates, self._squares):
            del kept[:-MOST_WINDOW]
        # A method may take the loss that tells the bend in other steps too, for its own ends.
        bend = estimator.bend(record) if due else None
        if bend is not None and math.isfinite(bend):
            self._look(bend)

    def _look(self, bend: float) -> None:
        """Takes a curvature along one direction, and settles the learning rate anew."""
        self._slow = SLOW * self._slow + (1.0 - SLOW) * bend
        self._fast = FAST * self._fast + (1.0 - FAST) * bend
        if len(self._losses) >= LEAST_WINDOW:
            seen = min(SHARE_MOST, max(SHARE_LEAST, self._seen_share()))
            self.share = 0.8 * self.share + 0.2 * seen
        self.lr = min(self.lr * GROWTH, self._asked())

    def _asked(self) -> float:
        """``K min(q share / h, reach / sqrt(K G))``."""
        curvature, count = max(self._slow, self._fast), self.estimator.directions
        bounds = []
        if curvature > 0.0:
            bounds.append(self.share * self._pure(curvature) / curvature)
        if self._energy > 0.0:
            bounds.append(self._reach / math.sqrt(count * self._energy))
        return count * (min(bounds) if bounds else self.fallback)

    def _pure(self, curvature: float) -> float:
        """q: which share of the differences' energy is not that of one-sided curvature."""
        if not self.estimator.one_sided or self._energy <= 0.0:
            return 1.0
        return max(LEAST_PURE, 1.0 - (self._eps * curvature / 2.0) ** 2 / self._energy)

    def _seen_share(self) -> float:
        """``fall / (K r q G) + r h / (2 q)``, the fall of the loss by least squares."""
        count = min(len(self._losses), max(LEAST_WINDOW, self._steps // 3))
        losses = np.array(self._losses[-count:])
        places = np.arange(count) - (count - 1) / 2.0
        fall = -float((places * losses).sum() / (places * places).sum())
        rate = float(np.mean(self._rates[-count:]))
        energy = float(np.mean(self._squares[-count:]))
        curvature = max(self._slow, self._fast, 0.0)
        if rate * energy <= 0.0:
            return self.share
        pure = self._pure(curvature)
        fall = max(0.0, fall) / self.estimator.directions
        return fall / (rate * energy * pure) + 0.5 * rate * curvature / pure

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later steps depend on, as numbers and lists."""
        return {
            "start": dict(self.start),
            "share": self.share,
            "slow": self._slow,
            "fast": self._fast,
            "energy": self._energy,
            "spread": self._spread,
            "steps": self._steps,
            "losses": list(self._losses),
            "rates": list(self._rates),
            "squares": list(self._squares),
            "lr": self.lr,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], estimator: Estimator = PAIR) -> RunningRate:
        """Returns what `state_dict` was taken of.

        Args:
            state: The state.
            estimator: How a step's directions are probed.
        """
        rate = cls(**state["start"], estimator=estimator)
        rate.share, rate.lr = float(state["share"]), float(state["lr"])
        rate._slow, rate._fast = float(state["slow"]), float(state["fast"])
        rate._energy, rate._steps = float(state["energy"]), int(state["steps"])
        rate._spread = float(state.get("spread", rate._spread))
        rate._losses, rate._rates = list(state["losses"]), list(state["rates"])
        rate._squares = list(state["squares"])
        return rate
