"""Bundles: many small blocks, worked on as one row.

Python costs more a block than its arithmetic does where blocks are small, as those of an
adapter are: dozens of them are gathered into one tensor, changed together, and put back. An
element's numbers come from its address, so they are the same ones as apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from zopeft.engine.direction import Direction
from zopeft.engine.elements import PIECE, Elements, Part
from zopeft.engine.flat_places import ALIGNMENT
from zopeft.engine.vector import Vector
from zopeft.kernels.runs import Layout, cut

SMALL = PIECE // 4
"""Elements of the largest block that is bundled."""


@dataclass(frozen=True, eq=False)
class Group:
    """Small blocks without shapes that can be bundled; their gaps in the row hold zeros.

    Args:
        elements: What makes the numbers of vectors.
        layout: Where each block lies in the row; ``blocks`` are their indices.
    """

    elements: Elements
    layout: Layout

    @property
    def indices(self) -> tuple[int, ...]:
        """The blocks' indices, ascending."""
        return self.layout.blocks

    def of(self, tensor: Callable[[int], Tensor]) -> Tensor:
        """Returns the blocks' tensors in their places, fp32 [1, n], a copy."""
        parts: list[Tensor] = []
        for index, (_, padded) in zip(self.indices, self.layout.tensors, strict=True):
            own = tensor(index).reshape(-1)
            parts.append(own)
            if padded > len(own):
                parts.append(own.new_zeros(padded - len(own)))
        return torch.cat(parts).float().view(1, -1)

    def places(self, values: Tensor) -> list[Tensor]:
        """Returns the parts of a row [1, n] that are the blocks', each flat."""
        flat, found, start = values.view(-1), [], 0
        for index, (_, padded) in zip(self.indices, self.layout.tensors, strict=True):
            found.append(flat[start : start + self.elements.blocks[index].numel])
            start += padded
        return found

    def bundle(self, stored: Callable[[int], Tensor]) -> Bundle:
        """Returns the blocks as one part.

        Args:
            stored: Returns a block's weights by its index.
        """
        return Bundle(self.elements, self.indices[0], slice(0, 1), self.of(stored), group=self)

    def takes(self, vectors: Iterable[Vector]) -> bool:
        """Whether vectors touch all of the blocks, and can tell their numbers together."""
        return all(
            vector.spans(self.indices) and all(vector.touches(index) for index in self.indices)
            for vector in vectors
        )


@dataclass(frozen=True, eq=False)
class Bundle(Part):
    """Some whole blocks as a row [1, n]; ``index`` is the first one's, ``stored`` a copy.

    Attributes:
        group: Which blocks, and where they lie.
    """

    group: Group = field(kw_only=True)

    def held(self, tensors: Sequence[Tensor]) -> Tensor:
        """See `Part.held`."""
        return self.group.of(tensors.__getitem__).to(self.device)

    def each(self, numbers: Sequence[float]) -> Tensor:
        """See `Part.each`."""
        own = np.array([numbers[index] for index in self.group.indices], dtype=np.float32)
        sizes = [padded for _, padded in self.group.layout.tensors]
        # torch's own repeat_interleave takes twenty times as long.
        return torch.from_numpy(np.repeat(own, sizes)).to(self.device).view(1, -1)

    def noise(self, direction: Direction) -> Tensor:
        """See `Part.noise`."""
        layout = self.group.layout
        noise = torch.zeros(layout.size, device=self.device)
        kernels, seed = self.elements.kernels, direction.seed
        kernels.shift_layout(layout, seed, noise, 1.0, direction.scales, noise)
        return noise.view(1, -1)

    def put(self, values: Tensor, target: Callable[[int], Tensor]) -> None:
        """Writes a row [1, n] to the blocks' tensors."""
        for index, value in zip(self.group.indices, self.group.places(values), strict=True):
            own = target(index)
            own.copy_(value.view(own.shape))

    def sums(self, values: Tensor) -> Tensor:
        """Returns the sum of a row [1, n] over each block."""
        return torch.stack([place.sum() for place in self.group.places(values)])


def groups_of(elements: Elements, indices: Sequence[int]) -> list[Group]:
    """Returns groups of the small blocks among some, of at most `PIECE` elements each.

    Args:
        elements: What makes the numbers of vectors.
        indices: The blocks' indices, ascending.
    """
    return [Group(elements, layout) for layout in _layouts(elements, indices)]


def _layouts(elements: Elements, indices: Sequence[int]) -> Iterator[Layout]:
    group: list[int] = []
    total = 0
    for index in indices:
        block = elements.blocks[index]
        if block.numel > SMALL or block.columns is not None or index in elements.forms:
            continue
        if total + block.numel > PIECE and group:
            yield _layout(elements, group)
            group, total = [], 0
        group.append(index)
        total += block.numel
    if len(group) > 1:
        yield _layout(elements, group)


def _layout(elements: Elements, indices: Sequence[int]) -> Layout:
    rows, tensors, end = [], [], 0
    for index in indices:
        block = elements.blocks[index]
        padded = -(-block.numel // ALIGNMENT) * ALIGNMENT
        rows.append((end, end, block.numel, 0, block.address, index))
        tensors.append((block.address, padded))
        end += padded
    return Layout(cut(rows), tuple(tensors), tuple(indices), end)
