"""LOZO: directions of low rank, one factor of which is kept for some steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.kept import LazyLowRank
from zopeft.optim.declared import Options, option
from zopeft.optim.factors import along, rest
from zopeft.optim.state import Factor, Kept, PerBlock, is_matrix
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LOZOOptions(Options):
    """The options of `LOZO`."""

    r: int = option(2, "rank of the directions of matrices", least=1, most=64)
    nu: int = option(50, "steps for which the right factor is kept", least=1)


class LOZO(ZerothOrder):
    """``u = U V^T / sqrt(r)`` for matrices, U [O, r] new each step and V [I, r] each nu steps.

    ``theta <- theta - lr g u``; vectors have Gaussian noise. Two forward passes a step, no
    memory: both factors are drawn from their addresses. The paper writes ``U V^T / r`` in the
    step and leaves it out of the probe, and its code leaves it out of both; dividing both by
    sqrt(r) keeps the energy of Gaussian noise, so that eps and lr mean what they do for MeZO.
    At nu = 1 this is MeZO with low_rank noise.

    Published settings: r 1 to 4, nu 50 or 100; lr 1e-6 or 1e-7 (ours: times r), eps 1e-3. nu
    matters most: OPT-1.3B on SST-2 has 93.0 at r 2, nu 50, and 55.0 at nu 1. The public code
    draws V before U in the probe and after it in the step wherever V is new, so that every
    nu-th step goes along another direction than was probed.

    References:
        Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
        Structures", 2024, algorithm 1.
    """

    Options = LOZOOptions

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """See `ZerothOrder.shapes`."""
        shape = LazyLowRank(self.own.r)
        return {index: shape for index, block in enumerate(blocks) if is_matrix(block)}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        kept = step.slow(self.own.nu)
        count = self.estimator.directions
        directions = [step.direction(number, kept) for number in range(count)]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients)]


@dataclass(frozen=True)
class LOZOMOptions(LOZOOptions):
    """The options of `LOZOM`."""

    beta: float = option(0.9, "decay of the momentum", least=0.0, below=1.0)


class LOZOM(LOZO):
    """LOZO with momentum of the left factor, [O, r] a matrix.

    ``N <- beta N + (1 - beta) g U; theta <- theta - lr N V^T / sqrt(r)``; where V is renewed,
    ``N <- N V_old^T V_new / I`` first. Vectors take plain steps.

    Published settings: beta 0.9, others as LOZO's.

    References:
        Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
        Structures", 2024, algorithm 2.
    """

    Options = LOZOMOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: N, and the step that its V was drawn in."""
        rank = self.own.r
        return {"momentum": Factor(lambda rows, _: (rows, rank)), "stage": PerBlock(-1.0)}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        beta, stage = self.own.beta, step.stage(self.own.nu)
        kept, forms = step.slow_of(stage), self.engine.forms
        u = step.direction(0, kept)
        (gradient,) = yield from step.gradients([u])
        momenta: dict[int, Tensor] = {}
        rights: dict[int, Tensor] = {}
        stages = step.state["stage"]
        for index, momentum in step.state["momentum"].items():
            left, rights[index] = forms.pair(index, u)
            if int(stages[index]) not in (-1, stage):
                old = forms.kept_of(index, step.slow_of(int(stages[index])))
                momentum = momentum @ (old @ forms.kept_of(index, kept).t()) / old.shape[1]
            momenta[index] = beta * momentum + (1.0 - beta) * gradient * left
        move = along(momenta, rights) + gradient * rest(u, self.blocks, momenta)
        stages = torch.full_like(stages, stage)
        return [step.descend(move, 1.0), step.change(momentum=momenta, stage=stages)]
