"""Gradients that are used up as they are made, in plain PyTorch: squares, and sums with noise."""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.noise import Noise

CHUNK = 1 << 20
"""Elements that are worked on at a time: no copy of a gradient is ever made whole."""


def squares(values: Tensor) -> Tensor:
    """See `PlainKernels.squares`."""
    total = torch.zeros((), dtype=torch.float64, device=values.device)
    for piece in values.reshape(-1).split(CHUNK):
        total += piece.double().square_().sum()
    return total


def fold(noise: Noise, seed: int, address: int, start: int, values: Tensor, length: int) -> Tensor:
    """Returns the f of `PlainKernels.fold`, of a noise family."""
    flat = values.reshape(-1)
    # A row of the table below begins where an element's index is a multiple of m.
    before = start % length
    total = torch.zeros(length, dtype=torch.float32, device=flat.device)
    step = max(1, CHUNK // length) * length
    for first in range(-before, flat.numel(), step):
        at, end = max(0, first), min(first + step, flat.numel())
        piece = flat[at:end]
        product = noise.at_elements(seed, address, start + at, piece.numel(), flat.device)
        product = product.mul_(piece)
        if first < 0:
            head = min(length - before, product.numel())
            total[before : before + head] += product[:head]
            product = product[head:]
        whole = product.numel() // length * length
        total += product[:whole].view(-1, length).sum(0)
        total[: product.numel() - whole] += product[whole:]
    return total
