"""Shards: each process perturbs and writes its own part of a tensor, and no other.

A probe is written into the part itself, which layers read (tensor parallelism) or which is
gathered for them (FSDP2), and a copy of the part is put back after it: so a process needs
memory for its part once more, and the noise that it makes is that of its part alone. Noise and
rounding are addressed in the whole tensor; so all parts together are bit for bit what one
process would have made of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.blocks.shards import gatherers, let_go, sums_over
from zopeft.engine.bundles import Group
from zopeft.engine.carrier import Carrier, CopiedBatch, UnstackableError
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements, as_matrix
from zopeft.engine.sums import Term, terms_of
from zopeft.engine.vector import Vector
from zopeft.errors import input_error
from zopeft.kernels.plain import SIXTEEN_BIT
from zopeft.kernels.plain_backend import Statistics

WHY = "the model is shared out among processes"


class ShardedWeights(Carrier):
    """The parts of some blocks that this process holds.

    16-bit adapters have an fp32 master beside them, as a `FlatBuffer` has.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n], each with its `Shard`.
        elements: What makes the numbers of vectors.
        model: The model.

    Raises:
        InputError: A part does not lie in order in memory.
    """

    def __init__(
        self, indices: Sequence[int], blocks: Sequence[Block], elements: Elements, model: nn.Module
    ) -> None:
        self.indices, self.blocks = list(indices), dict(zip(indices, blocks, strict=True))
        self.elements, self.kernels, self.forms = elements, elements.kernels, elements.forms
        self.groups: Sequence[Group] = ()
        self._gatherers = gatherers(model)
        self._masters: dict[int, Tensor] = {}
        let_go(self._gatherers)
        for index, block in self.blocks.items():
            if not block.data.is_contiguous():
                raise input_error(block.name, "its shard does not lie in order", do="make it so")
            if elements.blocks.space == "adapter" and block.data.dtype in SIXTEEN_BIT:
                self._masters[index] = block.data.float()

    def adopt(self) -> None:
        """Reads weights that somebody else has written as the master."""
        let_go(self._gatherers)
        for index, master in self._masters.items():
            work = self.blocks[index].data
            if not torch.equal(work, master.to(work.dtype)):
                master.copy_(work)

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``w + step * u`` to the forwards inside."""
        kept: dict[int, Tensor] = {}
        let_go(self._gatherers)
        try:
            with torch.no_grad():
                for index, block in self.blocks.items():
                    if direction.touches(index):
                        kept[index] = self._masters.get(index, block.data.clone())
                        self._show(index, direction, step, block.data)
            yield
        finally:
            let_go(self._gatherers)
            with torch.no_grad():
                for index, own in kept.items():
                    self.blocks[index].data.copy_(own)

    def _show(self, index: int, vector: Vector, step: float, out: Tensor) -> None:
        stored, direction = self.stored(index), vector.plain
        if direction is not None and index not in self.forms:
            table, scale = self.elements.table(index), _scale(direction, index)
            flat = stored.view(-1)
            self.kernels.shift_table(table, direction.seed, flat, step, scale, out.view(-1))
            return
        shown = as_matrix(out)
        for part in self.elements.parts(index, stored):
            shown[part.rows] = self.elements.shifted(vector, step, part, out)

    @property
    def unstackable(self) -> str:
        """See `Carrier.unstackable`: a copy of the batch cannot have weights of its own."""
        return WHY

    @property
    def ungroupable(self) -> str:
        """See `Carrier.ungroupable`."""
        return WHY

    def stacked(
        self, probes: Sequence[Probe], copies: CopiedBatch
    ) -> AbstractContextManager[Mapping[int, Tensor]]:
        """Refuses, see `unstackable`."""
        raise UnstackableError(WHY, True)

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        let_go(self._gatherers)
        with torch.no_grad():
            for index in self.indices:
                terms, decay = terms_of(directions, coefficients[:, index]), float(decays[index])
                if terms[0][1] == 0.0 and decay == 1.0:
                    continue
                if index in self.forms:
                    self._add_shaped(index, terms, decay)
                else:
                    self._add(index, terms, decay)
            self.finish()

    def _add(self, index: int, terms: Sequence[Term], decay: float) -> None:
        flat, table = self.stored(index).view(-1), self.elements.table(index)
        if len(terms) == 1 or flat.dtype == torch.float32:
            for direction, coefficient in terms:
                scale = _scale(direction, index)
                seed = direction.seed
                self.kernels.update_table(table, seed, flat, coefficient, decay, scale)
                decay = 1.0
            return
        total = flat.float().mul_(decay)
        for direction, coefficient in terms:
            scale = _scale(direction, index)
            self.kernels.shift_table(table, direction.seed, total, coefficient, scale, total)
        self.kernels.store_table(table, terms[0][0].seed, total, flat)

    def _add_shaped(self, index: int, terms: Sequence[Term], decay: float) -> None:
        """As `update_matrix` does it: one sum for each direction, of rows that fit a cache."""
        for direction, coefficient in terms:
            for part in self.elements.parts(index, self.stored(index)):
                u = direction.values(part).mul_(coefficient)
                self.elements.store(direction.seed, part, part.weight().mul(decay).add_(u))
            decay = 1.0

    def stored(self, index: int) -> Tensor:
        """Returns the part of a block, in the part's shape."""
        return self._masters.get(index, self.blocks[index].data)

    @contextmanager
    def edited(self, index: int, seed: int) -> Iterator[Tensor]:
        """Gives the part of a block to be changed in place; `finish` makes it seen."""
        let_go(self._gatherers)
        yield self.stored(index)

    def finish(self) -> None:
        """Ends a round of `edited`."""
        with torch.no_grad():
            for index, master in self._masters.items():
                self.blocks[index].data.copy_(master)

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each whole block, float64 [n]."""
        blocks = [self.blocks[index] for index in self.indices]
        counts = [block.numel for block in blocks]
        let_go(self._gatherers)
        with torch.no_grad():
            parts = [self.stored(index) for index in self.indices]
            own = [
                self.kernels.statistics(part) if part.numel() else (torch.zeros(()),) * 2
                for part in parts
            ]
        home = parts[0].device
        sizes = torch.tensor([part.numel() for part in parts], dtype=torch.float64, device=home)
        means = torch.stack([mean.to(home, torch.float64) for mean, _ in own])
        spreads = torch.stack([variance.to(home, torch.float64) for _, variance in own])
        total = torch.tensor(counts, dtype=torch.float64, device=home)
        mean = sums_over(blocks, sizes * means) / total
        apart = spreads * (sizes - 1).clamp(min=0) + sizes * (means - mean).square()
        return mean, sums_over(blocks, apart) / (total - 1).clamp(min=1)

    def state(self) -> Tensor | None:
        """Returns the masters of 16-bit adapters, as far as this process holds them."""
        if not self._masters:
            return None
        return torch.cat([master.reshape(-1) for master in self._masters.values()])

    def load_state(self, state: Tensor) -> None:
        """Takes what `state` gave."""
        parts = state.split([master.numel() for master in self._masters.values()])
        for master, part in zip(self._masters.values(), parts, strict=True):
            master.copy_(part.view(master.shape))
        self.finish()


def _scale(direction: Direction, index: int) -> Tensor | None:
    return None if direction.scales is None else direction.scales[index]
