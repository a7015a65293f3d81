"""LeZO: each step perturbs and writes a random part of the layers."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LeZOOptions(Options):
    """The options of `LeZO`."""

    skip: float = option(0.75, "share of the layers that a step leaves out", least=0.0, below=1.0)


class LeZO(ZerothOrder):
    """``theta_l <- theta_l - lr g z_l`` for a random part of the layers l, another each step.

    What is in no layer (embeddings, final norm, head) is part of each step. Two forward passes
    a step, no memory; noise and update are made for the chosen layers alone, which is what is
    saved. At least one layer is chosen; with skip 0 this is MeZO.

    Published settings: skip 0.75, others as MeZO's.

    References:
        Wang et al., "Simultaneous Computation and Memory Efficient Zeroth-Order Optimizer for
        Fine-Tuning Large Language Models", 2024, algorithm 1.
    """

    Options = LeZOOptions

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        blocks = [self.blocks[index] for index in step.blocks]
        layers = sorted({block.layer for block in blocks if block.layer is not None})
        count = max(1, round((1.0 - self.own.skip) * len(layers))) if layers else 0
        directions = step.directions
        if count < len(layers):
            chosen = set(step.dice("layers").sample(layers, count))
            kept = [n for n, b in enumerate(self.blocks) if b.layer is None or b.layer in chosen]
            directions = [u.only(kept) for u in directions]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients)]
