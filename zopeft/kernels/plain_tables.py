"""Runs of any tensors, such as the columns that a shard has of each row, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zopeft.kernels import plain
from zopeft.kernels.formula import Target
from zopeft.kernels.runs import ADDRESS, LENGTH, OUT, START, WEIGHT, Table, shares, spread
from zopeft.noise import Noise
from zopeft.noise.dither import dither_words
from zopeft.noise.philox import MASK


def address_of(table: Table) -> int:
    """Returns the address of the one tensor that a table is of."""
    return int(table[0, ADDRESS])


def pieces(table: Table, most: int) -> Iterator[Table]:
    """Yields a table in tables of about as many elements as are worked on at a time."""
    if len(table):
        parts = max(1, -(-int(table[:, LENGTH].sum()) // most))
        yield from (table[part] for part in shares(table, parts))


def stretches(target: Target, most: int) -> Iterator[tuple[int, int, Table | None]]:
    """Yields the pieces of a map's target: where each lies in its weights, and its runs if any."""
    if target.table is None:
        count = target.weight.numel()
        yield from ((at, min(count, at + most), None) for at in range(0, count, most))
        return
    at = 0
    for part in pieces(target.table, most):
        last = at + int(part[:, LENGTH].sum())
        yield at, last, part
        at = last


def places(table: Table, column: int, device: torch.device) -> Tensor:
    """Returns the places of a table's elements, int64 [n], see `runs.spread`."""
    return torch.from_numpy(spread(table, column)).to(device)


def words(table: Table, seed: int, device: torch.device) -> Tensor:
    """Returns what a table's elements are rounded by, int64 [n]; see `zopeft.noise.dither`."""
    return dither_words(seed, address_of(table) & MASK, places(table, START, device))


def shift(
    noise: Noise,
    table: Table,
    seed: int,
    weight: Tensor,
    step: float,
    scale: Tensor | None,
    out: Tensor,
    dithered: bool,
) -> None:
    """Does `PlainKernels.shift_table` for some runs at once."""
    device = weight.device
    u = _drawn(noise, table, seed, scale, device)
    found = words(table, seed, device) if dithered else None
    stored = weight[places(table, WEIGHT, device)]
    out[places(table, OUT, device)] = plain.perturb(stored, u, step, found, out.dtype)


def update(
    noise: Noise,
    table: Table,
    seed: int,
    weight: Tensor,
    rates: tuple[float, float],
    scale: Tensor | None,
    found: Tensor | None,
) -> None:
    """Does `PlainKernels.update_table` for some runs at once, by the words that were found."""
    device, (coefficient, decay) = weight.device, rates
    at, u = places(table, WEIGHT, device), _drawn(noise, table, seed, scale, device)
    new = weight[at].float().mul_(decay).add_(u.mul_(coefficient))
    weight[at] = stored(new, weight.dtype, found)


def stored(values: Tensor, dtype: torch.dtype, found: Tensor | None) -> Tensor:
    """Returns fp32 numbers [n] in a dtype of storage, rounded by words where there are any."""
    return values.to(dtype) if found is None else plain.stochastic_round(values, found, dtype)


def _drawn(
    noise: Noise, table: Table, seed: int, scale: Tensor | None, device: torch.device
) -> Tensor:
    u = noise.at_places(seed, address_of(table), places(table, START, device))
    return u if scale is None else u.mul_(scale.to(device))
