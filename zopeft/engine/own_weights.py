"""Blocks that lie in their modules: written once a step, and measured as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine.direction import Direction
from zopeft.engine.elements import Elements
from zopeft.engine.known import Known
from zopeft.engine.sums import terms_of, update_matrix, update_weight
from zopeft.engine.traced import descent
from zopeft.kernels.formula import Target
from zopeft.kernels.plain_backend import Statistics


class OwnWeights:
    """The blocks of modules, without a master beside them.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n]; none of them a slice.
        elements: What makes the numbers of vectors.
        offload: The model's offloaded tensors.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        elements: Elements,
        offload: Offload,
    ) -> None:
        self.elements, self.offload = elements, offload
        self.kernels, self.forms = elements.kernels, elements.forms
        self.indices = list(indices)
        self.blocks = list(blocks)
        self._known: list[Known | None] = [None] * len(self.blocks)
        self._measured = False

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        with torch.no_grad():
            done = self._together(directions, coefficients, decays)
            for number, block in enumerate(self.blocks):
                index = self.indices[number]
                if index in done:
                    continue
                terms, decay = terms_of(directions, coefficients[:, index]), float(decays[index])
                if terms[0][1] == 0.0 and decay == 1.0:
                    continue
                stored, *copies = self.offload.writable(block)
                weight = stored.contiguous()
                if index in self.forms:
                    found = update_matrix(
                        self.kernels, self.forms, index, terms, decay, weight, self._measured
                    )
                else:
                    found = update_weight(
                        self.kernels, index, block, terms, decay, weight.view(-1), self._measured
                    )
                for copy in copies if weight is stored else (stored, *copies):
                    copy.copy_(weight)
                kept = found is not None and weight is stored
                self._known[number] = Known(found, weight) if kept and found else None

    def _together(
        self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor
    ) -> set[int]:
        """Does `update` for many blocks in one pass; returns their indices.

        Their statistics are not taken, and all directions are along them.
        """
        if self._measured or self.offload or not self.kernels.formulas:
            return set()
        whole = (coefficients != 0.0).all(0).tolist()
        targets, numbers = [], []
        for number, (index, block) in enumerate(zip(self.indices, self.blocks, strict=True)):
            if whole[index] and index not in self.forms:
                weight, *copies = self.offload.writable(block)
                if weight.is_contiguous() and not copies:
                    targets.append(Target(block.address, weight, ()))
                    numbers.append(number)
        indices = [self.indices[number] for number in numbers]
        if targets:
            formula, trace = descent(directions, coefficients, decays)
            constants, seed = trace.numbers(indices), directions[0].seed
            self.kernels.map(formula, targets, constants, trace.noises, seed)
        for number in numbers:
            self._known[number] = None
        return set(indices)

    def stored(self, index: int) -> Tensor:
        """Returns a block's weights as stored."""
        return self.offload.value(self.blocks[self.indices.index(index)])

    @contextmanager
    def edited(self, index: int) -> Iterator[Tensor]:
        """Gives a block's weights as stored, to be changed in place."""
        number = self.indices.index(index)
        weight, *copies = self.offload.writable(self.blocks[number])
        yield weight
        for copy in copies:
            copy.copy_(weight)
        self._known[number] = None

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block, float64 [n].

        Once asked for, they are measured by each update pass, and not read again unless
        somebody else has written the weight since.
        """
        self._measured = True
        values: list[Statistics] = []
        with torch.no_grad():
            for block, known in zip(self.blocks, self._known, strict=True):
                weight = self.offload.value(block)
                if known is not None and known.fits(weight):
                    values.append(known.statistics)
                else:
                    values.append(self.kernels.statistics(weight))
        device = values[0][0].device
        means, variances = (
            [each.to(device) for each in part] for part in zip(*values, strict=True)
        )
        return torch.stack(means), torch.stack(variances)
