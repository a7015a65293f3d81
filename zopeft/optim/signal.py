"""Signal: how far a batch's examples agree about a direction, and the share that it makes.

Along u, example i of a batch, of weight w_i in its loss, has the part ``p_i = w_i (l_i(+) - l_i(-))
/ (2 eps)`` of the projected gradient, ``g = sum_i p_i``. Two examples are drawn apart, so that on
average their product is that of what both have in common, the slope of the mean loss:

    ``A = (g^2 - sum_i p_i^2) / (1 - sum_i w_i^2)``,  ``E[A] = E[(u' grad L)^2]``

The losses of examples are there in every forward, so this costs none (`zopeft.probing.examples`).
A step tells little of it; over a few, the mean of A over that of ``G = g^2`` is the signal share,
the part of a step's energy that goes downhill for other batches too. It is known long before the
loss has fallen by more than its scatter, and there it is asked for: later the fall of the loss
tells what steps have really come to, with all that this leaves out (`zopeft.optim.falls`).

References:
    McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, appendix A: the same
    split of a gradient's energy, from gradients of two batch sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.optim.estimator import Estimator
from zopeft.optim.rate import SHARE_LEAST, SHARE_MOST
from zopeft.optim.taken import Taken
from zopeft.probing.examples import Told

EXAMPLES = "examples"
"""The value of a method's option ``share`` that asks for it."""
NOTE = "signal"
"""Name of the note in a step's record: A, fp32 [1]."""
FIRST = 3.0
"""Steps that the share which a run begins with counts as."""
CARE = 0.7
"""Part of the share that is taken: a choice. With 1.5 of it runs of batches of two ended far
higher, with all of it within their scatter of where they end with this."""


class Examples:
    """What the examples of a step's micro-batches have shown along its directions.

    Args:
        estimator: How the directions are probed.
        eps: Finite-difference step.
    """

    def __init__(self, estimator: Estimator, eps: float) -> None:
        self.estimator, self.eps = estimator, eps
        self._slopes = torch.zeros(estimator.directions, dtype=torch.float64)
        self._squares, self._weights = torch.zeros_like(self._slopes), 0.0
        self._batches, self._known = 0, True

    def add(self, told: Told | None, taken: Taken) -> None:
        """Takes what was told of one micro-batch.

        Args:
            told: What all its probes have told, in their order; None if that is not known.
            taken: Which of them make the step's differences.
        """
        self._batches += 1
        if told is None or not taken.count:
            self._known = False
            return
        weights = told.weights.double()
        parts = self._differences(told.losses.double(), taken) * weights
        self._slopes += parts.sum(1)
        self._squares += parts.square().sum(1)
        self._weights += float(weights.square().sum())

    def _differences(self, losses: Tensor, taken: Taken) -> Tensor:
        """Returns ``(l_i(+) - l_i(-)) / (2 eps)`` of each direction and example, [K, B]."""
        own = losses[taken.first : taken.first + taken.count]
        if self.estimator.one_sided:
            return (own - losses[taken.first - 1]) / self.eps
        return (own[::2] - own[1::2]) / (2.0 * self.eps)

    def signal(self) -> float:
        """Returns A, the mean over the directions; NaN where it cannot be told."""
        weights = self._weights / max(1, self._batches) ** 2
        if not self._known or not 0.0 < weights < 1.0:
            return math.nan
        squares = self._slopes.square() - self._squares
        return float(squares.mean()) / self._batches**2 / (1.0 - weights)


class Signal:
    """The signal share of a run, by its first steps.

    Attributes:
        steps: Steps that have told.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._signal = self._energy = 0.0

    def note(self, signal: float, grads: Sequence[float]) -> None:
        """Takes note of a step.

        Args:
            signal: A.
            grads: Its differences, [K].
        """
        self._signal += signal
        self._energy += sum(grad * grad for grad in grads) / len(grads)
        self.steps += 1

    def share(self, first: float, pure: float) -> float:
        """Returns the share to take of what a step's energy is without one-sided curvature.

        Args:
            first: The share that the run began with.
            pure: q, the energy's share that is not one-sided curvature.
        """
        if not self._energy > 0.0:
            return first
        # What is off by curvature is so for all examples alike.
        seen = (self._signal / self._energy - (1.0 - pure)) / pure
        share = (self.steps * CARE * seen + FIRST * first) / (self.steps + FIRST)
        return min(SHARE_MOST, max(SHARE_LEAST, share))

    def state_dict(self) -> dict[str, Any]:
        """Returns all that later shares depend on."""
        return {"signal": self._signal, "energy": self._energy, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._signal, self._energy = float(state["signal"]), float(state["energy"])
        self.steps = int(state["steps"])
