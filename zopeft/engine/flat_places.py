"""Where the parameters of some blocks lie in one flat buffer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.engine.forms import Forms
from zopeft.engine.tied import View, views_of
from zopeft.kernels.runs import Layout, Run, cut

ALIGNMENT = 128
"""Elements that every parameter starts at a multiple of: the widest span of a counter."""


class FlatPlaces:
    """The places of parameters: those of shaped blocks behind the others.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n], ascending.
        blocks: The blocks, [n]; several may be slices of one parameter.
        forms: Which blocks are shaped.

    Attributes:
        parameters: The parameters, each once.
        offsets: Where each begins.
        size: Elements of the whole buffer.
        whole: All of it laid out for the kernels.
        isotropic: What is not shaped, laid out; the same object where nothing is.
    """

    def __init__(self, indices: Sequence[int], blocks: Sequence[Block], forms: Forms) -> None:
        self.indices, self.blocks, self.forms = indices, blocks, forms
        self.parameters: list[nn.Parameter] = []
        self._views: list[tuple[nn.Parameter, View, int]] = []
        self._members: list[list[int]] = []
        self._read_parameters()
        self.offsets = [0] * len(self.parameters)
        plain, self.size = self._place()
        self.whole = self._lay_out(range(len(self.parameters)), self.size)
        isotropic = [n for n, members in enumerate(self._members) if not self._shaped(members)]
        self.isotropic = self.whole
        if len(isotropic) < len(self.parameters):
            self.isotropic = self._lay_out(isotropic, plain)
        self._parameter_of = {
            indices[member]: (number, blocks[member])
            for number, members in enumerate(self._members)
            for member in members
        }

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

    def each(self, buffer: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yields each parameter and its part of a buffer [..., size], flat."""
        for parameter, offset in zip(self.parameters, self.offsets, strict=True):
            yield parameter, buffer[..., offset : offset + parameter.numel()]

    def bind(self, buffer: Tensor) -> None:
        """Makes the parameters views of a buffer, and what is tied to them."""
        for parameter, place in self.each(buffer):
            parameter.data = place.view(parameter.shape)
        for other, view, number in self._views:
            other.data = view.of(self.parameters[number].data)

    def read(self, buffer: Tensor) -> bool:
        """Copies to a buffer what parameters hold elsewhere; returns whether any is elsewhere."""
        moved = False
        for parameter, place in self.each(buffer):
            if parameter.data_ptr() != place.data_ptr():
                place.copy_(parameter.detach().reshape(-1))
                moved = True
        for other, _, number in self._views:
            moved |= other.data_ptr() != self.parameters[number].data_ptr()
        return moved

    def astray(self, buffer: Tensor) -> nn.Parameter | None:
        """Returns the first parameter that is no view of a buffer; None if all are."""
        for parameter, place in self.each(buffer):
            if parameter.numel() and parameter.data_ptr() != place.data_ptr():
                return parameter
        return None

    def view(self, index: int, buffer: Tensor) -> Tensor:
        """Returns a block's part of a buffer, in its shape."""
        number, block = self._parameter_of[index]
        parameter, offset = self.parameters[number], self.offsets[number]
        whole = buffer[offset : offset + parameter.numel()].view(parameter.shape)
        return whole if block.columns is None else whole[..., slice(*block.columns)]

    def shaped(self) -> Iterator[tuple[Block, int, slice]]:
        """Yields each shaped block, its index and its place in the buffer."""
        for offset, members in zip(self.offsets, self._members, strict=True):
            if self._shaped(members):
                block = self.blocks[members[0]]
                yield block, self.indices[members[0]], slice(offset, offset + block.numel)

    def in_order(self) -> list[slice]:
        """Returns where the parameters lie, in their own order, whichever are shaped."""
        pairs = zip(self.parameters, self.offsets, strict=True)
        return [slice(offset, offset + _padded(p.numel())) for p, offset in pairs]


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
