"""When a meta-training has seen enough: checks that grow rarer, and what they compare.

A check is made after `FIRST` steps of a stage, and again each time that there are `RARER` times
as many. What gains less than a share `stop` from one check to the next is not gone on with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Subspace
from zopeft.meta.shaped import core

FIRST, RARER = 24, 1.5
"""Steps before the first check, and how many times as many before the next one."""
JUDGES = 4
"""Gradients that the bases of a check are judged by: those of the steps that come next."""
MOVED = 5.0
"""How much further than the objective, in shares of `stop`, the scales may still move."""


class Checks:
    """Says after which steps of a stage to check."""

    def __init__(self) -> None:
        self._next = float(FIRST)

    def due(self, steps: int) -> bool:
        """Whether a check is due after so many steps; each is due once."""
        if steps < math.ceil(self._next):
            return False
        while steps >= math.ceil(self._next):
            self._next *= RARER
        return True


class Captured:
    """Which share of the gradients to come lies in the bases that there are.

    ``sum w ||U^T G V||^2 / sum w ||G||^2``, over all matrices and `JUDGES` gradients that the bases
    were not made of.

    Args:
        blocks: The blocks, [N].
        bases: Left and right directions of matrices, by index.
    """

    def __init__(self, blocks: Blocks, bases: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        self.shapes = {
            index: Subspace(left.float(), right.float()).to(blocks[index].parameter.device)
            for index, (left, right) in bases.items()
        }
        self.left = JUDGES
        self._inside = torch.zeros((), dtype=torch.float64)
        self._whole = torch.zeros((), dtype=torch.float64)
        self._weight = 0.0

    def begin(self, weight: float) -> None:
        """Announces a gradient that counts `weight`; 0 for one that is not to judge."""
        self._weight = weight
        self.left -= weight > 0.0

    def take(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes a parameter's share of a gradient."""
        shape = self.shapes.get(indices[0])
        if shape is None or self._weight == 0.0:
            return
        self._inside += self._weight * core(gradient, shape).double().square().sum().cpu()
        self._whole += self._weight * gradient.double().square().sum().cpu()

    @property
    def share(self) -> float:
        """The share; not finite where no gradient has judged."""
        return float(self._inside / self._whole)


class Settled:
    """Whether scales have settled: neither they nor what they gain have moved since the last check.

    Args:
        stop: Share by which the objective may still move; the scales by `MOVED` times as much.
    """

    def __init__(self, stop: float) -> None:
        self.stop = stop
        self._scales: Tensor | None = None
        self._gain = math.nan

    def check(self, scales: Tensor, gain: float) -> bool:
        """Takes the scales [N] of a check and their gain, ``J - J(ones)``; whether they settled."""
        before, self._scales = self._scales, scales.double().log()
        last, self._gain = self._gain, gain
        if before is None or not math.isfinite(gain - last):
            return False
        moved = float((self._scales - before).square().mean().sqrt())
        return abs(gain - last) < self.stop and moved < MOVED * self.stop
