"""lr="auto" while a run goes on: the learning rate that its own probes ask for.

The rule is here. How h and G are measured by today's runs is told by `zopeft.optim.thrifty`;
`RunningRate` is how they once were, after a first look of 17 passes, and runs that began so go
on so.

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
from collections.abc import Sequence
from typing import Any, Protocol

from zopeft.optim.estimator import PAIR, Estimator
from zopeft.optim.falls import Falls
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

LEAST_WINDOW = 50
"""Fewest steps over which the fall of the loss is measured; otherwise the last third of the run."""
PART = 0.2
"""Part of the newest look at the share in its running mean."""


def shared(share: float, seen: float | None, part: float) -> float:
    """Returns the running signal share after another one was seen; None for none.

    Args:
        share: The running one.
        seen: The one that was seen.
        part: What part it is to have in the mean.
    """
    seen = share if seen is None else seen
    return (1.0 - part) * share + part * min(SHARE_MOST, max(SHARE_LEAST, seen))


class Seen(Protocol):
    """The losses of a step: those of its record, or of its probes so far."""

    @property
    def losses(self) -> Sequence[float]:
        """Those that the update needs."""
        ...

    @property
    def centre(self) -> float | None:
        """The one at the weights, where it was taken."""
        ...

    @property
    def mirror(self) -> float | None:
        """The one on the other side of the first direction, where one-sided steps took it."""
        ...

    @property
    def eps(self) -> float:
        """Finite-difference step."""
        ...


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
        self._falls = Falls(estimator)
        self.lr = self._asked()
        self.first = self.lr * self._unit(self._spread)

    @property
    def began(self) -> float:
        """Learning rate of the first step, before any schedule."""
        return self.first

    @property
    def factor(self) -> float:
        """The learning rate over the first one, for a spread as it usually is."""
        return self.factor_at(self._spread)

    def factor_of(self, seen: Seen) -> float:
        """Returns the learning rate of a step with these losses over the first one."""
        estimator, centre = self.estimator, seen.centre
        # What counts are the losses that the update needs: one-sided, also that at the weights.
        needed = (
            seen.losses if centre is None or not estimator.one_sided else (*seen.losses, centre)
        )
        if estimator.normalise and all(map(math.isfinite, needed)):
            grads = estimator.differences(seen.losses, centre, seen.eps)
            return self.factor_at(estimator.spread(grads))
        return self.factor

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
        self._falls.note(record, spread)
        # A method may take the loss that tells the bend in other steps too, for its own ends.
        bend = estimator.bend(record) if due else None
        if bend is not None and math.isfinite(bend):
            self._look(bend)

    def _look(self, bend: float) -> None:
        """Takes a curvature along one direction, and settles the learning rate anew."""
        self._slow = SLOW * self._slow + (1.0 - SLOW) * bend
        self._fast = FAST * self._fast + (1.0 - FAST) * bend
        if self._falls.count >= LEAST_WINDOW:
            curvature, window = max(self._slow, self._fast), max(LEAST_WINDOW, self._steps // 3)
            seen = self._falls.share(window, curvature, self._pure(max(curvature, 0.0)))
            self.share = shared(self.share, seen, PART)
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
            **self._falls.state_dict(),
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
        rate._falls.load_state_dict(state)
        return rate
