"""The step that zopeft's are measured beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class PlainMeZO:
    """MeZO as it is usually written: one stream of torch.normal, weights changed in place.

    Args:
        model: All that asks for a gradient is trained.
        lr: Learning rate.
        eps: Finite-difference step.
        first_seed: The seed before that of the first step; each step takes the next.
    """

    def __init__(self, model: Any, lr: float, eps: float, first_seed: int = 0) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.eps, self.count = lr, eps, first_seed

    def _add(self, seed: int, factor: float) -> None:
        torch.manual_seed(seed)
        for weight in self.weights:
            z = torch.normal(0.0, 1.0, weight.shape, device=weight.device, dtype=weight.dtype)
            weight.data.add_(z, alpha=factor)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        """One step: three perturbations and one update; returns the probes' mean loss."""
        self.count += 1
        self._add(self.count, self.eps)
        plus = closure()
        self._add(self.count, -2 * self.eps)
        minus = closure()
        self._add(self.count, self.eps)
        grad = float((plus - minus) / (2 * self.eps))
        self._add(self.count, -self.lr * grad)
        return (plus + minus) / 2
