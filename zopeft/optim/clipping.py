"""Clipping of the projected gradient to its own running size, and what counts as a spike."""

from __future__ import annotations

import math

DECAY = 0.95
SPIKE = 10.0
"""A projected gradient is a spike where it is more than so many times the usual size."""
KNOWN = 20
"""Projected gradients from which on it is known how large they usually are."""
ENTERS = 3.0
"""What a spike counts as in running means, in multiples of the running root mean square.

One broken batch then says little of those to come; and where all gradients have grown for good,
a running mean has grown with them a hundredfold (the root tenfold) after some 14 steps."""


def tamed(grad: float, size: float) -> float:
    """Returns what a projected gradient enters running means as.

    Args:
        grad: The gradient.
        size: How large they usually are, their root mean square; 0 where nobody knows.
    """
    if size <= 0.0 or abs(grad) <= SPIKE * size:
        return grad
    return math.copysign(ENTERS * size, grad)


class RunningClip:
    """Keeps projected gradients within a multiple of their running root mean square.

    ``g <- sign(g) min(|g|, factor sqrt(v / (1 - decay^t)))``, ``v <- decay v + (1 - decay)
    g^2`` with g before clipping, or `tamed` where it is a spike; the first step is never clipped.

    Args:
        factor: The multiple, >= 0; 0 switches clipping off.

    Attributes:
        taming: Whether spikes count as such; runs that began before they did go on without.
        spikes: Projected gradients that were spikes.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.taming, self.spikes = True, 0
        self._square = 0.0
        self._count = 0

    def clipped(self, grad: float) -> float:
        """Returns the projected gradient to use."""
        if not self.factor or not self._count:
            return grad
        limit = self.factor * self._size
        return max(-limit, min(limit, grad))

    @property
    def _size(self) -> float:
        return math.sqrt(self._square / (1.0 - DECAY**self._count))

    def note(self, grad: float) -> None:
        """Takes note of a projected gradient, as it was before clipping."""
        if self.taming and self._count >= KNOWN:
            counts = tamed(grad, self._size)
            self.spikes += counts != grad
            grad = counts
        self._square = DECAY * self._square + (1.0 - DECAY) * grad * grad
        self._count += 1

    def state_dict(self) -> dict[str, float]:
        """Returns the running mean and the counts."""
        state = {"square": self._square, "count": self._count}
        return {**state, "spikes": self.spikes} if self.taming else state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes what `state_dict` gave."""
        self._square, self._count = float(state["square"]), int(state["count"])
        self.taming, self.spikes = "spikes" in state, int(state.get("spikes", 0))
