"""How the loss has fallen over a run, and the signal share that it tells."""

from __future__ import annotations

from typing import Any

import numpy as np

from zopeft.optim.estimator import Estimator
from zopeft.optim.record import StepRecord

MOST = 1000
"""Steps that are kept."""


class Falls:
    """The losses of the last steps, with what the steps did.

    Args:
        estimator: How a step's directions are probed.
    """

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        self._losses: list[float] = []
        self._rates: list[float] = []
        self._squares: list[float] = []

    @property
    def count(self) -> int:
        """Steps that there are."""
        return len(self._losses)

    def note(self, record: StepRecord, spread: float) -> None:
        """Takes note of a step.

        Args:
            record: Its record.
            spread: What its differences were divided by; 1 where they were not.
        """
        count = self.estimator.directions
        centre = record.centre if self.estimator.one_sided else None
        self._losses.append(record.loss if centre is None else centre)
        rate = sum(record.lr) / len(record.lr) / count
        self._rates.append(rate / spread if spread > 0.0 else 0.0)
        squares = sum(grad**2 for grad in record.projected_grads) / count
        self._squares.append(squares * spread**2)
        for kept in (self._losses, self._rates, self._squares):
            del kept[:-MOST]

    def share(self, window: int, curvature: float, pure: float) -> float | None:
        """Returns ``fall / (K r q G) + r h / (2 q)``, the fall by least squares.

        Args:
            window: The last steps that count.
            curvature: h.
            pure: q, the energy's share that is not one-sided curvature.

        Returns:
            The signal share; None where no step has moved.
        """
        count = min(len(self._losses), window)
        losses = np.array(self._losses[-count:])
        places = np.arange(count) - (count - 1) / 2.0
        fall = -float((places * losses).sum() / (places * places).sum())
        rate = float(np.mean(self._rates[-count:]))
        energy = float(np.mean(self._squares[-count:]))
        curvature = max(curvature, 0.0)
        if rate * energy <= 0.0:
            return None
        fall = max(0.0, fall) / self.estimator.directions
        return fall / (rate * energy * pure) + 0.5 * rate * curvature / pure

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses and what the steps did, as lists."""
        return {
            "losses": list(self._losses),
            "rates": list(self._rates),
            "squares": list(self._squares),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._losses, self._rates = list(state["losses"]), list(state["rates"])
        self._squares = list(state["squares"])
