"""Scratch memory that modules use one after another.

Fresh memory for each module would be zeroed by the system page by page, which takes
longer than filling it; memory used again is still in the processor's cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Arena:
    """Buffers to take and give back; as many are kept as were ever out at once."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def take(self, weight: Tensor) -> Tensor:
        """Returns a flat buffer of the weight's device and dtype, at least as long as it is."""
        free = self._free.setdefault((weight.device, weight.dtype), [])
        for at, buffer in enumerate(free):
            if buffer.numel() >= weight.numel():
                return free.pop(at)
        if free:
            free.pop()
        return lasting(weight.numel(), weight)

    def give_back(self, buffer: Tensor) -> None:
        """Takes a buffer that nothing reads any more."""
        self._free[(buffer.device, buffer.dtype)].append(buffer)


def lasting(count: int, weight: Tensor) -> Tensor:
    """Returns [count] of a weight's device and dtype that may be written in any later mode.

    What is made in inference mode could be written in no other.
    """
    with torch.inference_mode(False):
        return torch.empty(count, dtype=weight.dtype, device=weight.device)


def returns_new_memory(module: nn.Module) -> bool:
    """Whether a module's output never shares memory with its weight."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"
