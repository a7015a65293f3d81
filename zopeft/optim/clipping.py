"""Clipping of the projected gradient to its own running size."""

from __future__ import annotations

import math

DECAY = 0.95


class RunningClip:
    """Keeps projected gradients within a multiple of their running root mean square.

    ``g <- sign(g) min(|g|, factor sqrt(v / (1 - decay^t)))``, ``v <- decay v + (1 - decay)
    g^2`` with g before clipping; the first step is never clipped.

    Args:
        factor: The multiple, >= 0; 0 switches clipping off.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._square = 0.0
        self._count = 0

    def clipped(self, grad: float) -> float:
        """Returns the projected gradient to use."""
        if not self.factor or not self._count:
            return grad
        limit = self.factor * math.sqrt(self._square / (1.0 - DECAY**self._count))
        return max(-limit, min(limit, grad))

    def note(self, grad: float) -> None:
        """Takes note of a projected gradient, as it was before clipping."""
        self._square = DECAY * self._square + (1.0 - DECAY) * grad * grad
        self._count += 1

    def state_dict(self) -> dict[str, float]:
        """Returns the running mean and the count."""
        return {"square": self._square, "count": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes what `state_dict` gave."""
        self._square, self._count = float(state["square"]), int(state["count"])
