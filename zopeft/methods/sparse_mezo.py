"""Sparse-MeZO: only the small weights are perturbed and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.engine.vector import Each, Elementwise
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerBlock
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder

SAMPLE = 1 << 20
"""Most elements of a block that its threshold is measured on, evenly spread."""


@dataclass(frozen=True)
class SparseOptions(Options):
    """The options of `SparseMeZO`."""

    sparsity: float = option(
        0.75, "share of each block's weights, the largest, that stay still", least=0.0, below=1.0
    )
    renew: int = option(100, "steps for which the thresholds are kept", least=1)


class SparseMeZO(ZerothOrder):
    """``u = [|theta| <= h] z``, h a block's quantile; ``theta <- theta - lr g u``.

    The mask is that of the weights as they are, in probe and update alike; h is measured each
    so many steps (the paper does each step), the mask follows the weights. Two forward passes a
    step, one number a block. Larger learning rates than MeZO's are possible.

    Published settings: sparsity 0.75, lr 1e-6, eps 1e-3. What other projects run by this name
    is a random mask.

    References:
        Liu et al., "Sparse MeZO: Less Parameters for Better Performance in Zeroth-Order LLM
        Fine-Tuning", 2024, algorithm 1.
    """

    Options = SparseOptions
    spaces = ("full", "adapter")
    shards = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: h."""
        return {"threshold": PerBlock(-1.0)}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        thresholds = step.state["threshold"]
        renews = step.number % self.own.renew == 0
        if renews or bool((thresholds[step.blocks] < 0.0).any()):
            thresholds = thresholds.clone()
            for index in step.blocks:
                thresholds[index] = self._threshold(index)
        limits = Each(thresholds.tolist())

        def masked(weight: Tensor, z: Tensor, limit: Tensor) -> Tensor:
            return z.mul_(weight.abs() <= limit)

        directions = [Elementwise(masked, (u, limits)) for u in step.directions]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients), step.change(threshold=thresholds)]

    def _threshold(self, index: int) -> float:
        if self.own.sparsity == 0.0:
            # Weights may grow: none is too large.
            return math.inf
        weight = self.engine.weights(index).reshape(-1)
        sizes = weight[:: max(1, -(-len(weight) // SAMPLE))].abs().float()
        rank = max(1, round((1.0 - self.own.sparsity) * len(sizes)))
        return float(sizes.kthvalue(rank).values)
