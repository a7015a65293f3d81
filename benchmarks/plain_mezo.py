"""The step that zopeft's are measured beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class PlainMeZO:
    """MeZO as it is usually written: one stream of torch.normal, weights changed in place."""

    def __init__(self, model: Any, lr: float, eps: float) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.eps, self.count = lr, eps, 0

    def _add(self, seed: int, factor: float) -> None:
        torch.manual_seed(seed)
        for weight in self.weights:
            z = torch.normal(0.0, 1.0, weight.shape, device=weight.device, dtype=weight.dtype)
            weight.data.add_(z, alpha=factor)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor]) -> None:
        """One step: three perturbations and one update."""
        self.count += 1
        self._add(self.count, self.eps)
        plus = closure()
        self._add(self.count, -2 * self.eps)
        minus = closure()
        self._add(self.count, self.eps)
        grad = float((plus - minus) / (2 * self.eps))
        self._add(self.count, -self.lr * grad)
