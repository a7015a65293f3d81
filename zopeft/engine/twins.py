"""Perturbed twins of stored weights, made for one forward pass at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.engine.arena import Arena, lasting
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements, as_matrix
from zopeft.engine.scratch import Scratch, Shift
from zopeft.engine.vector import Vector
from zopeft.kernels.form import Form

ALIGNED = 64
"""Elements that the twins of a layer begin at multiples of."""


def room(weight: Tensor) -> int:
    """Returns the elements that a weight's twin takes beside others of its layer."""
    return -(-weight.numel() // ALIGNED) * ALIGNED


class Twins:
    """Makes ``w + step * u`` of the blocks' weights, whole or some rows of them.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n].
        elements: What makes the numbers of vectors.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        elements: Elements,
    ) -> None:
        self.indices, self.blocks = indices, blocks
        self.elements = elements
        self.kernels, self.forms = elements.kernels, elements.forms
        self.arena = Arena()
        self.vector: Vector | None = None
        self.step, self.seed = 0.0, 0
        self._scales: tuple[Direction | None, list[float] | None] = None, None
        self._wanted: dict[tuple[torch.device, torch.dtype], int] = {}
        self._memory: dict[tuple[torch.device, torch.dtype, bool], Tensor] = {}

    def show(self, vector: Vector | None, step: float = 0.0) -> None:
        """From now on the twins are those of a probe; None for no probe."""
        self.vector, self.step = vector, step
        direction = self.direction
        self.seed = 0 if direction is None else direction.seed

    @property
    def direction(self) -> Direction | None:
        """The direction of the probe, where its vector is nothing else."""
        return None if self.vector is None else self.vector.plain

    @property
    def scales(self) -> list[float] | None:
        """The scales of the probe's direction, one of each block of the engine; None for ones."""
        direction = self.direction
        if direction is None or direction.scales is None:
            return None
        if self._scales[0] is not direction:
            self._scales = direction, direction.scales.tolist()
        return self._scales[1]

    def reserve(self, weights: Iterable[Tensor]) -> None:
        """Says that a layer will ask for memory for all of its weights' twins at once."""
        total = 0
        for weight in weights:
            total += room(weight)
            kind = weight.device, weight.dtype
            self._wanted[kind] = max(total, self._wanted.get(kind, 0))

    def memory_for(self, weight: Tensor, at: int, second: bool = False) -> Tensor:
        """Returns memory of the shape of a weight, which layers use one after another.

        Args:
            weight: The weight.
            at: Elements of it that the layer's other weights take.
            second: Whether it is for the second probe of a pair.
        """
        kind, count = (weight.device, weight.dtype), weight.numel()
        memory = self._memory.get((*kind, second))
        if memory is None or len(memory) < at + count:
            memory = lasting(max(at + count, self._wanted.get(kind, 0)), weight)
            self._memory[*kind, second] = memory
        return memory[at : at + count].view(weight.shape)

    @property
    def mixed(self) -> bool:
        """Whether the probe's vector is more than one direction."""
        return self.vector is not None and self.vector.plain is None

    def touches(self, number: int) -> bool:
        """Whether the probe moves a block."""
        return self.vector is None or self.vector.touches(self.indices[number])

    def scale(self, number: int, direction: Direction) -> Tensor | None:
        """The block's scale under `direction` as a 0-dim tensor, None for one."""
        return None if direction.scales is None else direction.scales[self.indices[number]]

    def form(self, number: int, device: torch.device) -> Form:
        """Returns the form of a shaped block under the direction of the probe."""
        assert self.direction is not None
        return self.forms.of(self.indices[number], self.direction, device)

    def noisy(self, number: int) -> bool:
        """Whether isotropic noise is part of a block's direction."""
        return self.mixed or self.forms.noisy(self.indices[number])

    def pairs(self, ahead: Probe, behind: Probe) -> bool:
        """Whether two probes lie on both sides of the weights, along one direction."""
        same = ahead[0] is behind[0] and ahead[0].plain is not None
        return self.kernels.pairs and same and ahead[1] == -behind[1]

    def shaped(self, number: int) -> bool:
        """Whether a block's direction has a shape of its own."""
        return self.indices[number] in self.forms

    def share(self, number: int) -> float | None:
        """See `Forms.share`."""
        return self.forms.share(self.indices[number])

    def has_product(self, number: int) -> bool:
        """Whether a product of factors is part of a block's direction, beside the weight."""
        return not self.mixed and self.forms.has_product(self.indices[number])

    def make(
        self,
        number: int,
        weight: Tensor,
        rows: slice | None = None,
        reuse: bool = False,
        product: bool = True,
        exact: bool = False,
        memory: Tensor | None = None,
    ) -> Scratch:
        """Makes the twin of a weight, or of some rows of it.

        Args:
            number: The block's number among those of the carrier.
            weight: The whole weight, as it is now.
            rows: Which rows; None for all.
            reuse: Whether nothing reads the twin any more once it is freed.
            product: False leaves out the product of factors, which runs beside.
            exact: Whether the twin is fp32, not rounded to the weight's dtype.
            memory: Where it goes, see `memory_for`; None for memory of its own.
        """
        vector, step = self.vector, self.step
        assert vector is not None
        some = weight if rows is None else weight[rows]
        # A graph may hold on to a scratch, so only a forward alone can use one again.
        differentiable = torch.is_grad_enabled()
        own = memory is None and reuse and not differentiable
        buffer = self.arena.take(some) if own else None

        def fill(memory: Tensor) -> Tensor:
            self._fill(number, weight.detach(), rows, vector, step, product, memory)
            return memory

        def remake() -> Tensor:
            with torch.no_grad():
                dtype = torch.float32 if exact else some.dtype
                return fill(torch.empty(some.shape, dtype=dtype, device=some.device))

        if memory is not None and not differentiable:
            shifted = fill(memory)
        elif buffer is None:
            shifted = remake()
        else:
            shifted = fill(buffer[: some.numel()].view(some.shape))
        address = shifted.data_ptr()
        if differentiable:
            shifted = Shift.apply(some, shifted)  # type: ignore[no-untyped-call]
        return Scratch(shifted, address, remake, buffer)

    def both(self, number: int, weight: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Makes the twins of some rows under the probe, and under the one with minus its step.

        Products of factors are left out.

        Args:
            number: The number of a block along noise.
            weight: The whole matrix.
            rows: Which rows.
        """
        direction, some = self.direction, weight.detach()[rows]
        assert direction is not None
        shown = self.memory_for(some, 0), self.memory_for(some, 0, second=True)
        if self.shaped(number):
            scales = self.form(number, weight.device).scale
            assert scales is not None
            key = (direction.seed, self.blocks[number].address)
            self.kernels.shift_rows_both(*key, weight.detach(), rows, self.step, scales, *shown)
            return shown
        start, scale = rows.start * weight.shape[1], self.scale(number, direction)
        given = (direction.seed, self.blocks[number].address, start, some.reshape(-1))
        self.kernels.shift_both(*given, self.step, scale, *(each.view(-1) for each in shown))
        return shown

    def _fill(
        self,
        number: int,
        weight: Tensor,
        rows: slice | None,
        vector: Vector,
        step: float,
        product: bool,
        memory: Tensor,
    ) -> None:
        index, address = self.indices[number], self.blocks[number].address
        direction = vector.plain
        if direction is None:
            matrix, first = as_matrix(weight), 0 if rows is None else rows.start
            last = matrix.shape[0] if rows is None else rows.stop
            self._add(index, matrix, slice(first, last), vector, step, as_matrix(memory))
            return
        if index in self.forms:
            form = self.forms.of(index, direction, weight.device)
            form = form if product else Form(form.scale, None)
            rows = slice(0, weight.shape[0]) if rows is None else rows
            self.kernels.shift_matrix(direction.seed, address, weight, rows, step, form, memory)
            return
        start = 0 if rows is None else rows.start * weight.shape[1]
        some = weight if rows is None else weight[rows]
        self.kernels.shift(
            direction.seed,
            address,
            start,
            some.reshape(-1),
            step,
            self.scale(number, direction),
            memory.view(-1),
        )

    def _add(
        self,
        index: int,
        matrix: Tensor,
        rows: slice | Tensor,
        vector: Vector,
        step: float,
        out: Tensor,
    ) -> None:
        """Writes ``w + step * u`` of some rows for a vector that is more than one direction."""
        for part, place in self.elements.some(index, matrix, rows):
            out[place] = self.elements.shifted(vector, step, part, out)

    def free(self, made: Iterable[Scratch]) -> None:
        """Takes scratches back that nothing reads any more."""
        for scratch in made:
            if scratch.buffer is not None:
                self.arena.give_back(scratch.buffer)
                scratch.buffer = None

    def rows(self, number: int, weight: Tensor, rows: Tensor) -> Tensor:
        """Returns the twins of some rows of a matrix, in a new tensor.

        Args:
            number: The block's number among those of the carrier.
            weight: The matrix, [V, D].
            rows: int64 [n], row numbers.
        """
        vector, index = self.vector, self.indices[number]
        assert vector is not None
        address, direction = self.blocks[number].address, vector.plain
        with torch.no_grad():
            if direction is None:
                shifted = weight.new_empty((len(rows), weight.shape[1]))
                self._add(index, weight.detach(), rows, vector, self.step, shifted)
            elif index in self.forms:
                shifted = weight.new_empty((len(rows), weight.shape[1]))
                form = self.form(number, weight.device)
                self.kernels.shift_matrix(
                    direction.seed, address, weight.detach(), rows, self.step, form, shifted
                )
            else:
                scale = self.scale(number, direction)
                shifted = self.kernels.shift_rows(
                    direction.seed, address, rows, weight.detach(), self.step, scale
                )
        if torch.is_grad_enabled():
            shifted = Shift.apply(weight[rows], shifted)  # type: ignore[no-untyped-call]
        return shifted
