"""HiZOO: noise and step over the root of a running diagonal Hessian."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.engine.vector import HERE, Each, Elementwise, Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerBlock, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder

LEAST, MOST = 1e-8, 1e8
"""Bounds of the Hessian: one wild curvature must not still a weight for good."""


@dataclass(frozen=True)
class HiZOOOptions(Options):
    """The options of `HiZOO`."""

    smooth: float = option(1e-8, "share of a step's curvature in H", least=0.0, most=1.0)
    per: str = option("element", "what has an H of its own", choices=("element", "block"))
    update: str = option(
        "new", "the H of the write: after or before it is renewed", choices=("new", "old")
    )


class HiZOO(ZerothOrder):
    """``u = z / sqrt(H)``; ``H <- (1 - s) H + s |L+ + L- - 2 L0| / (2 eps^2) H z^2``.

    The write is ``theta <- theta - lr g z / sqrt(H)``, g along u, with the renewed H as in the
    authors' code, or the old one as in the paper's listing. Three forward passes a step (the
    authors' code makes a fourth for its log); one fp32 number a weight, or one a block: then
    z^2 is its mean over the block, 1.

    Published settings: lr 1e-6, eps 1e-3, smooth 1e-6 to 1e-12, 1e-8 in the example. H stays
    fp32 whatever the weights are; the released code keeps it in their dtype and loses it, and
    does not save it in checkpoints.

    References:
        Zhao et al., "Second-Order Fine-Tuning without Pain for LLMs: A Hessian Informed
        Zeroth-Order Optimizer", 2024, algorithm 1.
    """

    Options = HiZOOOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: H."""
        return {"hessian": PerElement(1.0) if self.own.per == "element" else PerBlock(1.0)}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 3

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        z, blockwise = step.direction(), self.own.per == "block"
        hessian: Vector = (
            step.state.held("hessian") if not blockwise else Each(step.state["hessian"].tolist())
        )
        u = Elementwise(lambda _, z, h: z.div_(h.sqrt_()), (z, hessian))
        here, plus, minus = yield [HERE, u.at(step.eps), u.at(-step.eps)]
        gradient = step.slope(plus, minus)
        smooth, new = self.own.smooth, self.own.update == "new"
        bend = abs(plus + minus - 2.0 * here) / (2.0 * step.eps**2)
        if blockwise:
            renewed = step.state["hessian"] * (1.0 - smooth + smooth * bend)
            renewed = renewed.clamp(LEAST, MOST)
            scale = Each((renewed if new else step.state["hessian"]).rsqrt().tolist())
            moved_by = Elementwise(lambda _, z, root: z.mul_(root), (z, scale))
            return [step.descend(moved_by, gradient), step.change(hessian=renewed)]

        def moved(lr: float, weight: Tensor, z: Tensor, h: Tensor) -> tuple:
            later = h * (1.0 - smooth) + (h * z).mul_(z).mul_(smooth * bend)
            later.clamp_(LEAST, MOST)
            root = torch.sqrt(later if new else h)
            return weight.add_(z.div_(root).mul_(-lr * gradient)), later

        return [step.map(moved, z, state=["hessian"])]
