"""Adapters: one flat fp32 master buffer, whose working copy the parameters are views of.

A probe writes ``work = master + step * u`` in one pass over the adapter, and the master
is never touched until the update, so the weights after a probe are what they were, bit
for bit, whatever happened inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.engine.bundles import groups_of
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements, as_matrix
from zopeft.engine.sums import terms_of, update_matrix
from zopeft.engine.tied import View, views_of
from zopeft.engine.vector import Vector
from zopeft.kernels.plain_backend import Statistics
from zopeft.kernels.runs import Layout, Run, cut

ALIGNMENT = 128
"""Elements that every parameter starts at a multiple of: the widest span of a counter."""


class FlatBuffer:
    """The parameters of some blocks that share a device and a dtype.

    Shaped blocks lie behind the others, and get their noise one by one.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n], ascending.
        blocks: The blocks, [n].
        elements: What makes the numbers of vectors.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        elements: Elements,
    ) -> None:
        self.elements = elements
        self.kernels, self.forms = elements.kernels, elements.forms
        self.indices = list(indices)
        self.blocks = list(blocks)
        self.parameters: list[nn.Parameter] = []
        self.offsets: list[int] = []
        self._views: list[tuple[nn.Parameter, View, int]] = []
        self._members: list[list[int]] = []
        self._read_parameters()
        first = self.parameters[0]
        self.device, self.dtype = first.device, first.dtype
        plain, size = self._place()
        self.master = torch.zeros(size, dtype=torch.float32, device=self.device)
        self.work = torch.zeros(size, dtype=self.dtype, device=self.device)
        self.layout = self._lay_out(range(len(self.parameters)), size)
        isotropic = [n for n, members in enumerate(self._members) if not self._shaped(members)]
        self.isotropic = self.layout
        if len(isotropic) < len(self.parameters):
            self.isotropic = self._lay_out(isotropic, plain)
        self._statistics: Statistics | None = None
        self.groups = groups_of(elements, self.indices)
        self._stored: dict[int, Tensor] = {}
        self._parameter_of = {
            self.indices[member]: (number, self.blocks[member])
            for number, members in enumerate(self._members)
            for member in members
        }
        self.adopt()

    def _read_parameters(self) -> None:
        seen: dict[int, int] = {}
        for member, block in enumerate(self.blocks):
            parameter = block.parameter
            if id(parameter) not in seen:
                seen[id(parameter)] = len(self.parameters)
                self.parameters.append(parameter)
                self._members.append([])
                number = seen[id(parameter)]
                self._views += [(other, view, number) for other, view in views_of(block)]
            self._members[seen[id(parameter)]].append(member)

    def _shaped(self, members: Sequence[int]) -> bool:
        return self.indices[members[0]] in self.forms

    def _place(self) -> tuple[int, int]:
        """Sets the offsets; returns where the shaped blocks begin and the whole size."""
        self.offsets = [0] * len(self.parameters)
        ends = []
        end = 0
        for shaped in (False, True):
            for number, members in enumerate(self._members):
                if self._shaped(members) == shaped:
                    self.offsets[number] = end
                    end += _padded(self.parameters[number].numel())
            ends.append(end)
        return ends[0], ends[1]

    def _lay_out(self, numbers: Iterable[int], size: int) -> Layout:
        """Lays out some parameters, in the order of the buffer."""
        rows: list[Run] = []
        tensors: list[tuple[int, int]] = []
        found: list[int] = []
        for number in sorted(numbers, key=self.offsets.__getitem__):
            parameter, offset = self.parameters[number], self.offsets[number]
            members = self._members[number]
            address = self.blocks[members[0]].address
            tensors.append((address, _padded(parameter.numel())))
            own = [(self.blocks[m], self.indices[m]) for m in members]
            found += [index for _, index in own]
            for block, start, length in _runs_of(parameter, own):
                rows.append((offset + start, offset + start, length, start, address, block))
        return Layout(cut(rows), tuple(tensors), tuple(sorted(found)), size)

    def bind(self) -> None:
        """Makes the parameters views of the working buffer, and what is tied to them."""
        for parameter, offset in zip(self.parameters, self.offsets, strict=True):
            flat = self.work[offset : offset + parameter.numel()]
            parameter.data = flat.view(parameter.shape)
        for other, view, number in self._views:
            other.data = view.of(self.parameters[number].data)

    def adopt(self) -> None:
        """Reads weights that somebody else has written (a checkpoint, a user) as the master."""
        with torch.no_grad():
            moved = False
            for parameter, offset in zip(self.parameters, self.offsets, strict=True):
                place = self.work[offset : offset + parameter.numel()]
                if parameter.data_ptr() != place.data_ptr():
                    place.copy_(parameter.detach().reshape(-1))
                    moved = True
            for other, _, number in self._views:
                moved |= other.data_ptr() != self.parameters[number].data_ptr()
            if moved:
                self.bind()
            if not torch.equal(self.work, self.master.to(self.dtype)):
                self.master.copy_(self.work)
                self._statistics = None

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``master + step * u`` to the forwards inside."""
        try:
            with torch.no_grad():
                self._shift(direction, step, self.work)
            yield
        finally:
            with torch.no_grad():
                self.work.copy_(self.master)

    def stacks(self, probes: Sequence[Probe]) -> dict[int, Tensor]:
        """Returns ``master + step * u`` of each of some probes, [P, ...], by parameter's id."""
        rows = self.work.new_empty((len(probes), self.work.numel()))
        with torch.no_grad():
            for row, (direction, step) in zip(rows, probes, strict=True):
                if step:
                    self._shift(direction, step, row)
                else:
                    row.copy_(self.work)
        return {
            id(parameter): rows[:, offset : offset + parameter.numel()].view(-1, *parameter.shape)
            for parameter, offset in zip(self.parameters, self.offsets, strict=True)
        }

    def _shift(self, vector: Vector, step: float, out: Tensor) -> None:
        """Writes ``master + step * u`` to `out`, laid out as the buffer is."""
        direction = vector.plain
        if direction is None or direction.indices is not None:
            self._add(vector, step, out)
            return
        size = self.isotropic.size
        if size:
            self.kernels.shift_layout(
                self.isotropic,
                direction.seed,
                self.master[:size],
                step,
                direction.scales,
                out[:size],
            )
        for block, index, place in self._matrices():
            form = self.forms.of(index, direction, self.device)
            weight, shifted = self.master[place], out[place]
            self.kernels.shift_matrix(
                direction.seed,
                block.address,
                weight.view(block.shape),
                slice(0, block.shape[0]),
                step,
                form,
                shifted.view(block.shape),
            )

    def _add(self, vector: Vector, step: float, out: Tensor) -> None:
        """Does `_shift` for a vector that is more than one direction, or less than a whole one."""
        out.copy_(self.master)
        done: set[int] = set()
        for group in self.groups if out.dtype == torch.float32 else ():
            if group.takes((vector,)):
                bundle = group.bundle(self.stored)
                shown = vector.values(bundle).mul_(step).add_(bundle.stored)
                bundle.put(shown, partial(self._view, buffer=out))
                done.update(group.indices)
        for index in self.indices:
            if vector.touches(index) and index not in done:
                shown = as_matrix(self._view(index, out))
                for part in self.elements.parts(index, self._view(index, self.master)):
                    shown[part.rows] = self.elements.shifted(vector, step, part, out)

    def _view(self, index: int, buffer: Tensor) -> Tensor:
        """Returns a block's part of a buffer that is laid out as the master is."""
        number, block = self._parameter_of[index]
        parameter, offset = self.parameters[number], self.offsets[number]
        whole = buffer[offset : offset + parameter.numel()].view(parameter.shape)
        return whole if block.columns is None else whole[..., slice(*block.columns)]

    def stored(self, index: int) -> Tensor:
        """Returns a block's weights, fp32, in its shape."""
        if index not in self._stored:
            self._stored[index] = self._view(index, self.master)
        return self._stored[index]

    @contextmanager
    def edited(self, index: int, seed: int) -> Iterator[Tensor]:
        """Gives a block's weights to be changed in place; `finish` makes them seen."""
        yield self._view(index, self.master)

    def finish(self) -> None:
        """Ends a round of `edited`."""
        with torch.no_grad():
            self.work.copy_(self.master)
        self._statistics = None

    def _matrices(self) -> Iterator[tuple[Block, int, slice]]:
        """Yields each shaped block, its index and its place in the buffer."""
        for offset, members in zip(self.offsets, self._members, strict=True):
            if self._shaped(members):
                block = self.blocks[members[0]]
                yield block, self.indices[members[0]], slice(offset, offset + block.numel)

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * master + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        with torch.no_grad():
            self._statistics = self._update(directions, coefficients, decays)
            self.work.copy_(self.master)

    def _update(
        self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor
    ) -> Statistics | None:
        size, statistics, decay = self.isotropic.size, None, decays
        for direction, own in zip(directions if size else (), coefficients, strict=False):
            statistics = self.kernels.update_layout(
                self.isotropic, direction.seed, self.master[:size], own, decay, direction.scales
            )
            decay = torch.ones_like(decays)
        for block, index, place in self._matrices():
            terms, shrink = terms_of(directions, coefficients[:, index]), float(decays[index])
            if terms[0][1] != 0.0 or shrink != 1.0:
                matrix = self.master[place].view(block.shape)
                update_matrix(self.kernels, self.forms, index, terms, shrink, matrix)
        return statistics if self.isotropic is self.layout else None

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block's master weights, float64 [n]."""
        if self._statistics is None:
            self._statistics = self.kernels.statistics_layout(self.layout, self.master)
        return self._statistics

    def state(self) -> Tensor | None:
        """Returns the master where the parameters cannot hold it (16-bit), else None."""
        if self.dtype == torch.float32:
            return None
        return torch.cat([self.master[place] for place in self._places()])

    def _places(self) -> list[slice]:
        """Where the parameters lie, in their own order: a state does not depend on shapes."""
        pairs = zip(self.parameters, self.offsets, strict=True)
        return [slice(offset, offset + _padded(p.numel())) for p, offset in pairs]

    def load_state(self, master: Tensor) -> None:
        """Takes a master that `state` gave."""
        with torch.no_grad():
            places = self._places()
            parts = master.split([place.stop - place.start for place in places])
            for place, part in zip(places, parts, strict=True):
                self.master[place].copy_(part)
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
