"""GRZO: one direction an example, for two forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zopeft.engine.flips import Flips, Signs
from zopeft.noise import role_seed
from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.groups import Group

TINY = 1e-8
"""What the spread of the differences is divided by at least, as in the paper."""


@dataclass(frozen=True)
class GRZOOptions(Options):
    """The options of `GRZO`."""

    groups: int = option(
        8, "K, groups of a batch's examples with a direction each", least=1, most=64
    )
    divide: str = option(
        "spread",
        "what differences are divided by: their spread over the groups, or nothing",
        choices=("spread", "nothing"),
    )


class GRZO(ZerothOrder):
    """``u_k = U * r_k s_k^T``: group k of the batch's examples sees signs of its own of one U.

    ``d_k = L_k(theta + eps u_k) - L_k(theta - eps u_k)``, L_k the loss of the group's examples;
    ``theta <- theta - lr / (2 eps K) sum_k d_k / (std(d) + 1e-8) u_k``. Every matrix has signs
    of its rows and columns for each group, a vector signs of its elements; those of the first
    group are ones. Two forward passes a step, no memory: a linear layer takes one product with
    its weight and one with U, whatever K. Weights that other layers read, and adapters, have a
    copy a group. At K = 1 this is MeZO, and there is no spread to divide by.

    Example i of the batch is of group i modulo K; with K the size of the batch, each example has
    its own direction. Under accumulation, groups go on through all micro-batches. It needs a
    closure that tells the losses of examples (`zopeft.BatchLoss`).

    Published settings: K the batch, others as MeZO's. The paper takes the mean loss of each
    example; here an example counts as it does in the batch's loss, so that with
    ``divide=nothing`` the step's mean is the batch's gradient.

    References:
        "GRZO", arXiv 2606.02857, 2026.
        Wen et al., "Flipout: Efficient Pseudo-Independent Weight Perturbations on Mini-Batches",
        2018, equation 4.
    """

    Options = GRZOOptions
    gradient_units = False
    single = True
    groups = True
    shards = False

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        u, count, eps = step.direction(), self.own.groups, step.eps
        if count == 1:
            plus, minus = yield [u.at(eps), u.at(-eps)]
            return [step.descend(u, step.slope(plus, minus))]
        signs = Signs(self.blocks, role_seed(step.seed, "signs"), count)
        own = [Flips.one(u, signs, number) for number in range(count)]
        losses = yield [
            Group(flip, side * eps, number, count)
            for side in (1, -1)
            for number, flip in enumerate(own)
        ]
        pairs = list(zip(losses[:count], losses[count:], strict=True))
        slopes = [step.slope(plus, minus) for plus, minus in pairs]
        spread = 1.0
        if self.own.divide == "spread":
            differences = [plus - minus for plus, minus in pairs]
            mean = sum(differences) / count
            spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / count) + TINY
        weights = tuple(slope / spread / count for slope in slopes)
        return [step.descend(Flips(u, signs, weights), 1.0)]
