"""Quantisation scales: written in place for a probe, and put back from a copy.

A step is relative: with z the addressed noise and s the block's own multiplier, a probe
shows ``Delta * (1 + step * s * z)``, and an update writes ``Delta * max(decay + c * s * z,
0)``. So every scale moves in proportion to its size, none changes its sign, and eps and
the learning rate mean the same for any quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.blocks.scales import ScaleHolder
from zopeft.engine.carrier import Carrier, CopiedBatch, UnstackableError
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.elements import Elements
from zopeft.engine.sums import terms_of
from zopeft.engine.vector import Vector, first_seed
from zopeft.kernels.plain import stochastic_round
from zopeft.kernels.plain_backend import Statistics


class ScaleTensors(Carrier):
    """The scales of some quantised layers.

    The paper adds ``step * z`` to the scales as they are; here z is in units of the scales.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n].
        elements: What makes the numbers of vectors.

    References:
        Fine-tuning Quantized Neural Networks with Zeroth-order Optimization (QZO, Zhou et
        al. 2025), section 3.
    """

    def __init__(self, indices: Sequence[int], blocks: Sequence[Block], elements: Elements) -> None:
        self.indices = list(indices)
        self.blocks = list(blocks)
        self.elements, self.kernels = elements, elements.kernels
        self._kept = [block.data.clone() for block in self.blocks]

    @contextmanager
    def perturbed(self, direction: Vector, step: float) -> Iterator[None]:
        """Shows ``Delta * (1 + step * u)`` to the forwards inside."""
        live = self._live()
        for kept, scales in zip(self._kept, live, strict=True):
            kept.copy_(scales)
        try:
            for number, scales in enumerate(live):
                factor = self._values(direction, number).mul_(step).add_(1.0)
                target = factor.mul_(scales.float()).view(-1)
                seed, address = first_seed(direction), self.blocks[number].address
                words = self.kernels.words(seed, address, 0, len(target), scales)
                if words is not None:
                    target = stochastic_round(target, words, scales.dtype)
                scales.copy_(target.view(scales.shape))
            yield
        finally:
            for kept, scales in zip(self._kept, live, strict=True):
                scales.copy_(kept)

    @property
    def unstackable(self) -> str:
        """See `Carrier.unstackable`."""
        return "quantisation scales are written for each probe"

    @property
    def ungroupable(self) -> str:
        """See `Carrier.ungroupable`."""
        return self.unstackable

    def stacked(
        self, probes: Sequence[Probe], copies: CopiedBatch
    ) -> AbstractContextManager[Mapping[int, Tensor]]:
        """Refuses: see `unstackable`.

        Raises:
            UnstackableError: Always.
        """
        raise UnstackableError(self.unstackable, True)

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``Delta * max(decay + sum_k coefficient_k * u_k, 0)``; [K, N], [N], float64."""
        for number, scales in enumerate(self._live()):
            index = self.indices[number]
            terms, decay = terms_of(directions, coefficients[:, index]), float(decays[index])
            if terms[0][1] == 0.0 and decay == 1.0:
                continue
            (direction, coefficient), *others = terms
            factor = self._direction(direction, number).mul_(coefficient).add_(decay)
            for other, its in others:
                factor.add_(self._direction(other, number).mul_(its))
            self._store(number, scales, factor, direction.seed)

    def _store(self, number: int, scales: Tensor, factor: Tensor, seed: int) -> None:
        target = factor.clamp_(min=0.0).mul_(scales.float())
        if scales.dtype != torch.float32:
            address = self.blocks[number].address
            words = self.kernels.updated_words(seed, address, 0, target.numel(), scales)
            assert words is not None
            target = stochastic_round(target.reshape(-1), words, scales.dtype)
        scales.copy_(target.view(scales.shape))

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block's scales, float64 [n]."""
        found = [self.kernels.statistics(scales) for scales in self._live()]
        return torch.stack([mean for mean, _ in found]), torch.stack([v for _, v in found])

    def _values(self, vector: Vector, number: int) -> Tensor:
        """Returns a vector's numbers on a block, fp32, in the block's shape."""
        index, kept = self.indices[number], self._kept[number]
        if not vector.touches(index):
            return torch.zeros(kept.shape, device=kept.device)
        if vector.plain is not None:
            return self._direction(vector.plain, number)
        ones = torch.ones(kept.shape, device=kept.device)
        parts = [vector.values(part) for part in self.elements.parts(index, ones)]
        return torch.cat(parts).view(kept.shape)

    def stored(self, index: int) -> Tensor:
        """Returns ones: weights are counted in units of the scales as they are."""
        scales = self._kept[self.indices.index(index)]
        return torch.ones(scales.shape, device=scales.device)

    @contextmanager
    def edited(self, index: int, seed: int) -> Iterator[Tensor]:
        """Gives ones to be changed in place; the scales are then multiplied by them."""
        number = self.indices.index(index)
        scales = self._live()[number]
        factor = torch.ones(scales.shape, device=scales.device)
        yield factor
        self._store(number, scales, factor, seed)

    def _direction(self, direction: Direction, number: int) -> Tensor:
        """Returns ``scale * z`` of a block, fp32, in the block's shape."""
        block, scales = self.blocks[number], self._kept[number]
        noise = self.kernels.noise.at_elements(
            direction.seed, block.address, 0, scales.numel(), scales.device
        )
        if direction.scales is not None:
            noise = noise.mul_(direction.scales[self.indices[number]].to(noise.device))
        return noise.view(scales.shape)

    def _live(self) -> list[Tensor]:
        for block in self.blocks:
            holder = block.owners[0].module
            assert isinstance(holder, ScaleHolder)
            holder.check()
        return [block.data for block in self.blocks]
