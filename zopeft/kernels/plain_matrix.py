"""Shaped directions of matrices, piece by piece, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zopeft.kernels.form import Form
from zopeft.noise import Noise

CHUNK = 1 << 20
"""Elements that are worked on at a time: they pass through a few times, in the cache."""


def draw(
    noise: Noise, seed: int, stream: int, tensors: Sequence[tuple[int, int]], device: torch.device
) -> list[Tensor]:
    """See `PlainKernels.draw`, of a noise family."""
    if not tensors:
        return []
    span = noise.span
    counts = [-(-count // span) for _, count in tensors]
    counters = torch.cat([torch.arange(count, device=device) for count in counts])
    addresses = torch.repeat_interleave(
        torch.tensor([address for address, _ in tensors], device=device),
        torch.tensor(counts, device=device),
    )
    drawn = noise.at_counters(seed, counters, addresses, stream)
    parts = drawn.split([count * span for count in counts])
    return [part[:count] for part, (_, count) in zip(parts, tensors, strict=True)]


def directions(
    noise: Noise, seed: int, address: int, rows: slice | Tensor, weight: Tensor, form: Form
) -> Iterator[tuple[slice | Tensor, slice, Tensor]]:
    """Yields pieces of some rows of a matrix: which, their place among the rows, and their u.

    Args:
        noise: The noise family.
        seed: 64-bit key of the step.
        address: 32-bit address of the matrix.
        rows: A slice with start and stop, or row numbers, int64 [n].
        weight: The whole matrix, [O, I].
        form: What u is made of.
    """
    width = weight.shape[1]
    for part, place in _parts(rows, width):
        drawn = None
        if form.scale is not None and isinstance(part, slice):
            start, count = part.start * width, (part.stop - part.start) * width
            drawn = noise.at_elements(seed, address, start, count, weight.device)
        elif form.scale is not None and isinstance(part, Tensor):
            drawn = noise.at_rows(seed, address, part, width)
        yield part, place, form.direction(None if drawn is None else drawn.view(-1, width), part)


def _parts(rows: slice | Tensor, width: int) -> list[tuple[slice | Tensor, slice]]:
    """Cuts rows into chunks: each one's index, and its place among all of them."""
    most = max(1, CHUNK // width)
    if isinstance(rows, Tensor):
        places = [slice(at, at + most) for at in range(0, len(rows), most)]
        return [(rows[place], place) for place in places]
    return [
        (
            slice(first, min(first + most, rows.stop)),
            slice(first - rows.start, first - rows.start + most),
        )
        for first in range(rows.start, rows.stop, most)
    ]
