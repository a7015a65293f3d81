"""Adapters: one flat fp32 master buffer, whose working copy the parameters are views of.

A probe writes ``work = master + step * u`` in one pass over the adapter, and the master
is never touched until the update, so the weights after a probe are what they were, bit
for bit, whatever happened inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.engine.bundles import groups_of
from zopeft.engine.carrier import Carrier, CopiedBatch
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements, as_matrix
from zopeft.engine.flat_places import FlatPlaces
from zopeft.engine.sums import terms_of, update_matrix
from zopeft.engine.vector import Vector
from zopeft.errors import InputError, input_error
from zopeft.kernels.plain_backend import Statistics


class FlatBuffer(Carrier):
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
        self.places = FlatPlaces(self.indices, self.blocks, self.forms)
        first = self.places.parameters[0]
        self.device, self.dtype = first.device, first.dtype
        size = self.places.size
        self.master = torch.zeros(size, dtype=torch.float32, device=self.device)
        self.work = torch.zeros(size, dtype=self.dtype, device=self.device)
        self._statistics: Statistics | None = None
        self.groups = groups_of(elements, self.indices)
        self._stored: dict[int, Tensor] = {}
        self.adopt()

    def adopt(self) -> None:
        """Reads weights that somebody else has written (a checkpoint, a user) as the master."""
        with torch.no_grad():
            if self.places.read(self.work):
                self.places.bind(self.work)
            if not torch.equal(self.work, self.master.to(self.dtype)):
                self.master.copy_(self.work)
                self._statistics = None

    def replaced(self) -> InputError | None:
        """Binds parameters that their layers have replaced by copies of their own; tells of one.

        bitsandbytes casts the bias of an 8- or 4-bit layer in place, to the dtype that it
        computes in: later probes would not be seen, and the cast copy of a probe be taken for
        the weights.
        """
        parameter = self.places.astray(self.work)
        if parameter is None:
            return None
        dtype = str(parameter.dtype).removeprefix("torch.")
        names = [block.name for block in self.blocks if block.parameter is parameter]
        self.places.bind(self.work)
        return input_error(
            names[0] if names else "model",
            f"its layer replaces it by a copy in {dtype} at a forward pass",
            do=f"cast it to {dtype} before zopeft.discover, or freeze it (bias='none')",
        )

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

    @property
    def by_layer(self) -> bool:
        """See `Carrier.by_layer`: each layer applies its P weights to its P copies."""
        return True

    @property
    def unstackable(self) -> str:
        """See `Carrier.unstackable`: that is for the layers to say."""
        return ""

    @property
    def ungroupable(self) -> str:
        """See `Carrier.ungroupable`: that is for the layers to say."""
        return ""

    @contextmanager
    def stacked(
        self, probes: Sequence[Probe], copies: CopiedBatch
    ) -> Iterator[Mapping[int, Tensor]]:
        """Gives ``master + step * u`` of each of some probes, [P, ...], by parameter's id."""
        rows = self.work.new_empty((len(probes), self.work.numel()))
        with torch.no_grad():
            for row, (direction, step) in zip(rows, probes, strict=True):
                if step:
                    self._shift(direction, step, row)
                else:
                    row.copy_(self.work)
        yield {id(p): place.view(-1, *p.shape) for p, place in self.places.each(rows)}

    def _shift(self, vector: Vector, step: float, out: Tensor) -> None:
        """Writes ``master + step * u`` to `out`, laid out as the buffer is."""
        direction = vector.plain
        if direction is None or direction.indices is not None:
            self._add(vector, step, out)
            return
        size = self.places.isotropic.size
        if size:
            self.kernels.shift_layout(
                self.places.isotropic,
                direction.seed,
                self.master[:size],
                step,
                direction.scales,
                out[:size],
            )
        for block, index, place in self.places.shaped():
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
                bundle.put(shown, partial(self.places.view, buffer=out))
                done.update(group.indices)
        for index in self.indices:
            if vector.touches(index) and index not in done:
                shown = as_matrix(self.places.view(index, out))
                for part in self.elements.parts(index, self.places.view(index, self.master)):
                    shown[part.rows] = self.elements.shifted(vector, step, part, out)

    def stored(self, index: int) -> Tensor:
        """Returns a block's weights, fp32, in its shape."""
        if index not in self._stored:
            self._stored[index] = self.places.view(index, self.master)
        return self._stored[index]

    @contextmanager
    def edited(self, index: int, seed: int) -> Iterator[Tensor]:
        """Gives a block's weights to be changed in place; `finish` makes them seen."""
        yield self.places.view(index, self.master)

    def finish(self) -> None:
        """Ends a round of `edited`."""
        with torch.no_grad():
            self.work.copy_(self.master)
        self._statistics = None

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * master + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        with torch.no_grad():
            self._statistics = self._update(directions, coefficients, decays)
            self.work.copy_(self.master)

    def _update(
        self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor
    ) -> Statistics | None:
        layout, statistics, decay = self.places.isotropic, None, decays
        size = layout.size
        for direction, own in zip(directions if size else (), coefficients, strict=False):
            statistics = self.kernels.update_layout(
                layout, direction.seed, self.master[:size], own, decay, direction.scales
            )
            decay = torch.ones_like(decays)
        for block, index, place in self.places.shaped():
            terms, shrink = terms_of(directions, coefficients[:, index]), float(decays[index])
            if terms[0][1] != 0.0 or shrink != 1.0:
                matrix = self.master[place].view(block.shape)
                update_matrix(self.kernels, self.forms, index, terms, shrink, matrix, False)
        return statistics if layout is self.places.whole else None

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block's master weights, float64 [n]."""
        if self._statistics is None:
            self._statistics = self.kernels.statistics_layout(self.places.whole, self.master)
        return self._statistics

    def state(self) -> Tensor | None:
        """Returns the master where the parameters cannot hold it (16-bit), else None."""
        if self.dtype == torch.float32:
            return None
        return torch.cat([self.master[place] for place in self.places.in_order()])

    def load_state(self, master: Tensor) -> None:
        """Takes a master that `state` gave."""
        with torch.no_grad():
            places = self.places.in_order()
            parts = master.split([place.stop - place.start for place in places])
            for place, part in zip(places, parts, strict=True):
                self.master[place].copy_(part)
            self.work.copy_(self.master)
        self._statistics = None
