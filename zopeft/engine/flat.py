"""Adapters: one flat fp32 master buffer, whose working copy the parameters are views of.

A probe writes ``work = master + step * u`` in one pass over the adapter, and the master
is never touched until the update, so the weights after a probe are what they were, bit
for bit, whatever happened inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.engine.direction import Direction
from zopeft.kernels import plain
from zopeft.noise import Noise

ALIGNMENT = 128
"""Elements that every parameter starts at a multiple of: the widest span of a counter."""


class FlatBuffer:
    """The parameters of some blocks that share a device and a dtype.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n].
        noise: The noise family.
    """

    def __init__(self, indices: Sequence[int], blocks: Sequence[Block], noise: Noise) -> None:
        self.noise = noise
        self.indices = list(indices)
        self.blocks = list(blocks)
        self.parameters: list[nn.Parameter] = []
        self.offsets: list[int] = []
        self._members: list[list[int]] = []
        self._read_parameters()
        first = self.parameters[0]
        self.device, self.dtype = first.device, first.dtype
        size = self.offsets[-1] + _padded(self.parameters[-1].numel())
        self.master = torch.zeros(size, dtype=torch.float32, device=self.device)
        self.work = torch.zeros(size, dtype=self.dtype, device=self.device)
        self._addresses()
        self._runs()
        self._drawn: tuple[Direction, Tensor] | None = None
        self.adopt()

    def _read_parameters(self) -> None:
        offset, seen = 0, {}
        for index, block in enumerate(self.blocks):
            parameter = block.parameter
            if id(parameter) not in seen:
                seen[id(parameter)] = len(self.parameters)
                self.parameters.append(parameter)
                self.offsets.append(offset)
                self._members.append([])
                offset += _padded(parameter.numel())
            self._members[seen[id(parameter)]].append(index)

    def _addresses(self) -> None:
        """Lays out counter and address of every counter of the buffer, [size // span]."""
        span = self.noise.span
        counts = [_padded(p.numel()) // span for p in self.parameters]
        addresses = [self.blocks[m[0]].address for m in self._members]
        self._counters = torch.cat([torch.arange(c, device=self.device) for c in counts])
        self._counter_addresses = torch.repeat_interleave(
            torch.tensor(addresses, device=self.device), torch.tensor(counts, device=self.device)
        )

    def _runs(self) -> None:
        """Cuts the buffer into runs of one block each; padding belongs to none (-1)."""
        owner: list[int] = []
        length: list[int] = []
        for parameter, members in zip(self.parameters, self._members, strict=True):
            for block, run in _runs_of(parameter, [(self.blocks[m], m) for m in members]):
                owner.append(block)
                length.append(run)
            owner.append(-1)
            length.append(_padded(parameter.numel()) - parameter.numel())
        merged = [
            (key, sum(n for _, n in run))
            for key, run in groupby(zip(owner, length, strict=True), key=lambda pair: pair[0])
        ]
        merged = [(key, n) for key, n in merged if n]
        self._run_block = torch.tensor([b for b, _ in merged], device=self.device)
        self._run_length = torch.tensor([n for _, n in merged], device=self.device)

    def spread(self, values: Tensor, padding: float = 0.0) -> Tensor:
        """Returns fp32 [size]: each block's value [n] at all of its elements."""
        table = torch.cat((values.to(self.device, torch.float32), values.new_full((1,), padding)))
        return torch.repeat_interleave(
            table[self._run_block], self._run_length, output_size=self.master.numel()
        )

    def bind(self) -> None:
        """Makes the parameters views of the working buffer."""
        for parameter, offset in zip(self.parameters, self.offsets, strict=True):
            flat = self.work[offset : offset + parameter.numel()]
            parameter.data = flat.view(parameter.shape)

    def adopt(self) -> None:
        """Reads weights that somebody else has written (a checkpoint, a user) as the master."""
        with torch.no_grad():
            moved = False
            for parameter, offset in zip(self.parameters, self.offsets, strict=True):
                place = self.work[offset : offset + parameter.numel()]
                if parameter.data_ptr() != place.data_ptr():
                    place.copy_(parameter.detach().reshape(-1))
                    moved = True
            if moved:
                self.bind()
            if not torch.equal(self.work, self.master.to(self.dtype)):
                self.master.copy_(self.work)

    def direction(self, direction: Direction) -> Tensor:
        """Returns ``u = scale * z`` of the whole buffer, fp32 [size]; kept for the step."""
        if self._drawn is None or self._drawn[0] is not direction:
            drawn = self.noise.at_counters(
                direction.seed, self._counters, self._counter_addresses
            )
            scales = torch.ones(len(self.blocks), device=self.device)
            if direction.scales is not None:
                scales = direction.scales[self.indices]
            self._drawn = (direction, drawn.mul_(self.spread(scales)))
        return self._drawn[1]

    @contextmanager
    def perturbed(self, direction: Direction, step: float) -> Iterator[None]:
        """Shows ``master + step * u`` to the forwards inside."""
        with torch.no_grad():
            self.work.copy_(plain.perturb(self.master, self.direction(direction), step))
        try:
            yield
        finally:
            with torch.no_grad():
                self.work.copy_(self.master)

    def update(self, direction: Direction, coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * master + coefficient * u``; both [N] over all blocks, float64."""
        with torch.no_grad():
            u = self.direction(direction)
            coefficient = self._uniform_or_spread(coefficients[self.indices], 0.0)
            decay = self._uniform_or_spread(decays[self.indices], 1.0)
            plain.update_(self.master, u, coefficient, decay, direction.seed, 0)
            self.work.copy_(self.master)
        self._drawn = None

    def _uniform_or_spread(self, values: Tensor, padding: float) -> Tensor | float:
        first = float(values[0])
        return first if bool((values == first).all()) else self.spread(values.float(), padding)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Returns mean and unbiased variance of each block, float64 [n]."""
        values = self.master.double()
        count = torch.zeros(len(self.blocks) + 1, dtype=torch.float64, device=self.device)
        block = self._run_block % (len(self.blocks) + 1)  # padding (-1) goes to the last place
        count = count.index_add(0, block, self._run_length.double())
        total = torch.zeros_like(count).index_add(
            0, block, torch.segment_reduce(values, "sum", lengths=self._run_length)
        )
        mean = total / count.clamp(min=1)
        centred = values - torch.repeat_interleave(
            mean[block], self._run_length, output_size=values.numel()
        )
        squares = torch.zeros_like(count).index_add(
            0, block, torch.segment_reduce(centred.square_(), "sum", lengths=self._run_length)
        )
        variance = squares / (count - 1).clamp(min=1)
        return mean[:-1], variance[:-1]

    def state(self) -> Tensor | None:
        """Returns the master where the parameters cannot hold it (16-bit), else None."""
        return None if self.dtype == torch.float32 else self.master.clone()

    def load_state(self, master: Tensor) -> None:
        """Takes a master that `state` gave."""
        with torch.no_grad():
            self.master.copy_(master)
            self.work.copy_(self.master)


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _runs_of(
    parameter: nn.Parameter, members: Sequence[tuple[Block, int]]
) -> Iterator[tuple[int, int]]:
    """Yields (block, length) runs of one parameter, slices row by row."""
    if members[0][0].columns is None:
        yield members[0][1], parameter.numel()
        return
    width = parameter.shape[-1]
    cuts = sorted((block.columns or (0, 0), index) for block, index in members)
    row: list[tuple[int, int]] = []
    end = 0
    for (start, stop), index in cuts:
        row += [(-1, start - end), (index, stop - start)]
        end = stop
    row.append((-1, width - end))
    for _ in range(parameter.numel() // width):
        yield from row


