"""Perturbed weights that live for one forward pass, and what autograd may know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Scratch:
    """A perturbed weight, where it lies in memory, and how to make it again."""

    weight: Tensor
    address: int
    remake: Callable[[], Tensor]
    buffer: Tensor | None


class Shift(torch.autograd.Function):
    """Replaces a weight by its perturbed twin; the gradient passes through unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shifted: Tensor) -> Tensor:
        """Returns `shifted`."""
        return shifted

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Hands the gradient to `weight`."""
        return gradients[0], None


@contextmanager
def remade(made: list[Scratch]) -> Iterator[None]:
    """Keeps scratch weights out of the autograd graph: they are made again when needed."""
    if not torch.is_grad_enabled():
        yield
        return

    def pack(tensor: Tensor) -> Any:
        for scratch in made:
            whole = tensor.numel() == scratch.weight.numel()
            if whole and tensor.data_ptr() == scratch.address:
                return scratch.remake, tensor.shape, tensor.stride()
        return tensor

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        remake, shape, stride = packed
        weight: Tensor = remake()
        return weight.as_strided(shape, stride)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
