"""Elements: a vector's numbers on a part of a block, and maps over all of them.

A block is read as a matrix [R, W], W its last dimension (a 1-D block is one row), and worked
on in pieces of whole rows that pass through the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.engine.vector import Vector, first_seed
from zopeft.kernels import plain
from zopeft.kernels.form import Form
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.kernels.runs import Table, of_stretches

if TYPE_CHECKING:
    from zopeft.engine.direction import Direction
    from zopeft.engine.forms import Forms

PIECE = 1 << 18
"""Elements that are worked on at a time: some fp32 copies of them fit into a cache."""


class Elements:
    """Makes the numbers of vectors over a model's blocks.

    Args:
        blocks: The blocks, [N].
        kernels: What makes noise.
        forms: What shaped blocks' directions are made of.
    """

    def __init__(self, blocks: Blocks, kernels: PlainKernels, forms: Forms) -> None:
        self.blocks, self.kernels, self.forms = blocks, kernels, forms
        self._tables: dict[int, Table] = {}

    def parts(self, index: int, weight: Tensor) -> Iterator[Part]:
        """Yields the pieces of a block.

        Args:
            index: The block's index.
            weight: The block's weights as stored, in the block's shape.
        """
        matrix = as_matrix(weight)
        for part, _ in self.some(index, matrix, slice(0, matrix.shape[0])):
            yield part

    def some(
        self, index: int, matrix: Tensor, rows: slice | Tensor
    ) -> Iterator[tuple[Part, slice]]:
        """Yields pieces of some rows of a block, and each piece's place among them.

        Args:
            index: The block's index.
            matrix: The block's weights as stored, [R, W].
            rows: A slice with start and stop, or row numbers, int64 [n].
        """
        most = max(1, PIECE // max(1, matrix.shape[1]))
        count = len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start
        for first in range(0, count, most):
            place = slice(first, min(first + most, count))
            if isinstance(rows, Tensor):
                own: slice | Tensor = rows[place]
            else:
                own = slice(rows.start + place.start, rows.start + place.stop)
            yield Part(self, index, own, matrix[own]), place

    def noise(self, direction: Direction, part: Part) -> Tensor:
        """Returns ``scale * z`` of a direction on a part, fp32 [n, W]."""
        index, block = part.index, self.blocks[part.index]
        if index in self.forms:
            form = self.forms.of(index, direction, part.device)
            return self._shaped(direction.seed, block, form, part)
        scale = None if direction.scales is None else direction.scales[index].to(part.device)
        width = block.parameter.shape[-1] if block.shape else 1
        if block.shard is not None:
            noise, scale = self._of_shard(direction.seed, part, scale), None
        elif isinstance(part.rows, Tensor):
            noise = self.kernels.noise.at_rows(direction.seed, block.address, part.rows, width)
        else:
            count = part.rows.stop - part.rows.start
            noise = torch.zeros(count * width, device=part.device)
            # Noise is what the kernels add to zeros: the fast ones serve here, too.
            start = part.rows.start * width
            kernels, seed = self.kernels, direction.seed
            kernels.shift(seed, block.address, start, noise, 1.0, scale, noise)
            noise, scale = noise.view(count, width), None
        if scale is not None:
            noise = noise.mul_(scale)
        return noise if block.columns is None else noise[:, slice(*block.columns)].contiguous()

    def store(self, seed: int, part: Part, values: Tensor) -> None:
        """Writes new weights of a part where its own lie, 16-bit ones rounded stochastically.

        Args:
            seed: 64-bit key of the step: it addresses the rounding.
            part: The part.
            values: fp32 [n, W].
        """
        out, block = part.stored, self.blocks[part.index]
        if out.dtype == torch.float32:
            out.copy_(values)
        elif block.shard is None:
            flat = values.reshape(-1)
            self.kernels.store(seed, block.address, part.start, flat, out.view(-1))
        else:
            table = self.table(part.index, part.rows)
            self.kernels.store_table(table, seed, values.reshape(-1), out.view(-1))

    def table(self, index: int, rows: slice | Tensor | None = None) -> Table:
        """Returns where the noise of a shard's rows is addressed, all or some, as runs."""
        if rows is None and index in self._tables:
            return self._tables[index]
        block = self.blocks[index]
        shard = block.shard
        assert shard is not None
        chosen = shard.rows if rows is None else shard.rows_of(rows)
        found = of_stretches(chosen, shard.columns, shard.width, block.address)
        if rows is None:
            self._tables[index] = found
        return found

    def _of_shard(self, seed: int, part: Part, scale: Tensor | None) -> Tensor:
        """Returns ``scale * z`` of some rows of a shard, fp32 [n, W]."""
        noise = torch.zeros(part.shape, device=part.device)
        flat = noise.view(-1)
        table = self.table(part.index, part.rows)
        self.kernels.shift_table(table, seed, flat, 1.0, scale, flat)
        return noise

    def shifted(self, vector: Vector, step: float, part: Part, out: Tensor) -> Tensor:
        """Returns ``w + step * u`` of a part, rounded once as a probe is.

        Args:
            vector: u.
            step: Finite-difference step with its sign.
            part: The part.
            out: Whose dtype the result has.
        """
        block, seed = self.blocks[part.index], first_seed(vector)
        if block.shard is None:
            words = self.kernels.row_words(seed, block.address, part.rows, part.stored, out)
        else:
            words = self.kernels.table_words(self.table(part.index, part.rows), seed, out)
        return plain.perturb(part.stored, vector.values(part), step, words, out.dtype)

    def _shaped(self, seed: int, block: Block, form: Form, part: Part) -> Tensor:
        noise, rows, (count, width) = None, part.rows, part.shape
        if form.scale is not None and block.shard is not None:
            noise = self._of_shard(seed, part, None)
        elif form.scale is not None and isinstance(rows, Tensor):
            noise = self.kernels.noise.at_rows(seed, block.address, rows, width)
        elif form.scale is not None:
            noise = torch.zeros(count * width, device=part.device)
            self.kernels.shift(seed, block.address, part.start, noise, 1.0, None, noise)
        return form.direction(None if noise is None else noise.view(count, width), rows)


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a block.

    Attributes:
        elements: What makes numbers.
        index: The block's index.
        rows: A slice with start and stop, or row numbers, int64 [n].
        stored: The rows' unperturbed weights as stored, [n, W].
    """

    elements: Elements
    index: int
    rows: slice | Tensor
    stored: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """N and W."""
        return int(self.stored.shape[0]), int(self.stored.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self.stored.device

    @property
    def start(self) -> int:
        """Index of the first element in the whole block."""
        assert isinstance(self.rows, slice)
        return int(self.rows.start) * self.shape[1]

    def weight(self) -> Tensor:
        """Returns the unperturbed weights, fp32 [n, W]; not to be changed."""
        return self.stored.float()

    def view(self, tensor: Tensor) -> Tensor:
        """Returns the part's rows of a tensor in the block's shape, [n, W]."""
        return as_matrix(tensor)[self.rows]

    def of(self, tensor: Tensor) -> Tensor:
        """Returns `view` on the part's device."""
        return self.view(tensor).to(self.device)

    def noise(self, direction: Direction) -> Tensor:
        """Returns ``scale * z`` of a direction, fp32 [n, W]."""
        return self.elements.noise(direction, self)

    def held(self, tensors: Sequence[Tensor]) -> Tensor:
        """Returns the part's numbers of tensors that are kept a block, [n, W], a copy."""
        return self.of(tensors[self.index]).clone()

    def each(self, numbers: Sequence[float]) -> Tensor:
        """Returns a number that is kept a block, fp32 [n, W]."""
        return self.zeros().add_(float(numbers[self.index]))

    def zeros(self) -> Tensor:
        """Returns zeros, fp32 [n, W]."""
        return torch.zeros(self.shape, device=self.device)


def as_matrix(tensor: Tensor) -> Tensor:
    """Returns a view [R, W] of a block's tensor."""
    if tensor.ndim == 2:
        return tensor
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(0, -2)
