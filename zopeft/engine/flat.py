"""Adapters: one flat fp32 master buffer, whose working copy the parameters are views of.

A probe writes ``work = master + step * u`` in one pass over the adapter, and the master
is never touched until the update, so the weights after a probe are what they were, bit
for bit, whatever happened inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.engine.direction import Direction
from zopeft.kernels.plain_backend import PlainKernels, Statistics
from zopeft.kernels.runs import Layout, Run, cut

ALIGNMENT = 128
"""Elements that every parameter starts at a multiple of: the widest span of a counter."""


class FlatBuffer:
    """The parameters of some blocks that share a device and a dtype.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n], ascending.
        blocks: The blocks, [n].
        kernels: What makes noise and adds it.
    """

    def __init__(
        self, indices: Sequence[int], blocks: Sequence[Block], kernels: PlainKernels
    ) -> None:
        self.kernels = kernels
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
        self.layout = self._lay_out(size)
        self._statistics: Statistics | None = None
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

    def _lay_out(self, size: int) -> Layout:
        rows: list[Run] = []
        tensors: list[tuple[int, int]] = []
        for parameter, offset, members in zip(
            self.parameters, self.offsets, self._members, strict=True
        ):
            address = self.blocks[members[0]].address
            tensors.append((address, _padded(parameter.numel())))
            own = [(self.blocks[m], self.indices[m]) for m in members]
            for block, start, length in _runs_of(parameter, own):
                rows.append((offset + start, offset + start, length, start, address, block))
        return Layout(cut(rows), tuple(tensors), tuple(self.indices), size)

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
                self._statistics = None

    @contextmanager
    def perturbed(self, direction: Direction, step: float) -> Iterator[None]:
        """Shows ``master + step * u`` to the forwards inside."""
        with torch.no_grad():
            self.kernels.shift_layout(
                self.layout, direction.seed, self.master, step, direction.scales, self.work
            )
        try:
            yield
        finally:
            with torch.no_grad():
                self.work.copy_(self.master)

    def stacks(self, direction: Direction, steps: Sequence[float]) -> dict[int, Tensor]:
        """Returns ``master + step * u`` for each of some steps, [P, ...], by parameter's id."""
        rows = self.work.new_empty((len(steps), self.work.numel()))
        with torch.no_grad():
            for row, step in zip(rows, steps, strict=True):
                self.kernels.shift_layout(
                    self.layout, direction.seed, self.master, step, direction.scales, row
                )
        return {
            id(parameter): rows[:, offset : offset + parameter.numel()].view(-1, *parameter.shape)
            for parameter, offset in zip(self.parameters, self.offsets, strict=True)
        }

    def update(self, direction: Direction, coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * master + coefficient * u``; both [N] over all blocks, float64."""
        with torch.no_grad():
            self._statistics = self.kernels.update_layout(
                self.layout,
                direction.seed,
                self.master,
                coefficients,
                decays,
                direction.scales,
            )
            self.work.copy_(self.master)

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block's master weights, float64 [n]."""
        if self._statistics is None:
            self._statistics = self.kernels.statistics_layout(self.layout, self.master)
        return self._statistics

    def state(self) -> Tensor | None:
        """Returns the master where the parameters cannot hold it (16-bit), else None."""
        return None if self.dtype == torch.float32 else self.master.clone()

    def load_state(self, master: Tensor) -> None:
        """Takes a master that `state` gave."""
        with torch.no_grad():
            self.master.copy_(master)
            self.work.copy_(self.master)
        self._statistics = None


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _runs_of(
    parameter: nn.Parameter, members: Sequence[tuple[Block, int]]
) -> Iterator[tuple[int, int, int]]:
    """Yields (block, start, length) runs of one parameter, slices row by row."""
    if members[0][0].columns is None:
        yield members[0][1], 0, parameter.numel()
        return
    width = parameter.shape[-1]
    cuts = sorted((block.columns or (0, 0), index) for block, index in members)
    for row in range(parameter.numel() // width):
        for (start, stop), index in cuts:
            yield index, row * width + start, stop - start
