"""Whole flat buffers of many tensors, each at its own address, in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.kernels.runs import BLOCK, LENGTH, OUT, Layout
from zopeft.noise import Noise
from zopeft.noise.dither import dither_words

Statistics = tuple[Tensor, Tensor]
"""Mean and unbiased variance, float64."""


@dataclass
class _Spread:
    """A layout's addresses and blocks, written out for each counter and each run."""

    counters: Tensor
    addresses: Tensor
    blocks: Tensor
    lengths: Tensor


class PlainLayouts:
    """Numbers for buffers that are laid out: noise, words of rounding, values of blocks.

    Args:
        noise: The noise family.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self._spreads: dict[Layout, _Spread] = {}
        self._kept: tuple[Layout, int, Tensor | None, Tensor] | None = None

    def words(self, layout: Layout, seed: int, device: torch.device) -> Tensor:
        """Returns what the elements of a buffer are rounded by, int64 [size]."""
        spread = self._spread(layout, device)
        inside = torch.arange(self.noise.span, device=device)
        elements = spread.counters.unsqueeze(1) * self.noise.span + inside
        return dither_words(seed, spread.addresses.unsqueeze(1), elements).view(-1)

    def statistics(self, layout: Layout, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics_layout`."""
        spread = self._spread(layout, weight.device)
        values = weight.double()
        place = torch.full((layout.blocks[-1] + 2,), len(layout.blocks), device=weight.device)
        place[torch.tensor(layout.blocks, device=weight.device)] = torch.arange(
            len(layout.blocks), device=weight.device
        )
        block = place[spread.blocks]
        zeros = torch.zeros(len(layout.blocks) + 1, dtype=torch.float64, device=weight.device)
        count = zeros.index_add(0, block, spread.lengths.double())
        sums = torch.segment_reduce(values, "sum", lengths=spread.lengths)
        mean = zeros.index_add(0, block, sums) / count.clamp(min=1)
        each = torch.repeat_interleave(mean[block], spread.lengths, output_size=len(weight))
        squares = torch.segment_reduce((values - each).square_(), "sum", lengths=spread.lengths)
        variance = zeros.index_add(0, block, squares) / (count - 1).clamp(min=1)
        return mean[:-1], variance[:-1]

    def drawn(self, layout: Layout, seed: int, weight: Tensor, scales: Tensor | None) -> Tensor:
        """Returns the u of a buffer, fp32 [size]; kept, since a step asks for it three times."""
        kept = self._kept
        if kept is None or kept[0] is not layout or kept[1] != seed or kept[2] is not scales:
            spread = self._spread(layout, weight.device)
            u = self.noise.at_counters(seed, spread.counters, spread.addresses)
            one = torch.ones(layout.blocks[-1] + 1, device=weight.device)
            u = u.mul_(self._each(layout, one if scales is None else scales, weight, 0.0))
            kept = self._kept = (layout, seed, scales, u)
        return kept[3]

    def uniform_or_spread(self, layout: Layout, values: Tensor, weight: Tensor) -> Tensor | float:
        """Returns the number that all blocks have, or each block's at its elements, [size]."""
        own = values[list(layout.blocks)]
        first = float(own[0])
        return first if bool((own == first).all()) else self._each(layout, values, weight, 1.0)

    def forget(self) -> None:
        """Lets go of the u that was kept."""
        self._kept = None

    def _each(self, layout: Layout, values: Tensor, weight: Tensor, padding: float) -> Tensor:
        """fp32 [size]: each block's value at all of its elements."""
        spread = self._spread(layout, weight.device)
        table = torch.full((layout.blocks[-1] + 2,), padding, device=weight.device)
        table[:-1] = values[: layout.blocks[-1] + 1]
        return torch.repeat_interleave(
            table[spread.blocks], spread.lengths, output_size=layout.size
        )

    def _spread(self, layout: Layout, device: torch.device) -> _Spread:
        if layout not in self._spreads:
            span = self.noise.span
            counts = [padded // span for _, padded in layout.tensors]
            addresses = torch.tensor([a for a, _ in layout.tensors], device=device)
            blocks, lengths, end = [], [], 0
            for row in layout.table[:, [OUT, LENGTH, BLOCK]].tolist():
                blocks += [-1, row[2]]
                lengths += [row[0] - end, row[1]]
                end = row[0] + row[1]
            self._spreads[layout] = _Spread(
                torch.cat([torch.arange(c, device=device) for c in counts]),
                torch.repeat_interleave(addresses, torch.tensor(counts, device=device)),
                torch.tensor([*blocks, -1], device=device),
                torch.tensor([*lengths, layout.size - end], device=device),
            )
        return self._spreads[layout]
