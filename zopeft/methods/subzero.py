"""SubZero: random orthonormal subspaces of each matrix, renewed now and then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.kept import RandomSubspace
from zopeft.engine.vector import HERE
from zopeft.optim.declared import Options, option
from zopeft.optim.factors import along, on_matrices, rest, sign_of
from zopeft.optim.state import Factor, Kept
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class SubZeroOptions(Options):
    """The options of `SubZero`."""

    r: int = option(24, "rank of the subspaces; at most a matrix's own", least=1, most=256)
    renew: int = option(1000, "steps for which a subspace is kept", least=1)


class SubZero(ZerothOrder):
    """``u = c U Z V^T``, U and V orthonormal and kept for some steps, Z [r, r] new each step.

    ``theta <- theta - lr g u``; vectors have Gaussian noise. c = sqrt(O I) / r, as in the code:
    the paper has no factor, and then u is r / sqrt(O I) of MeZO's length. U and V are the Q of
    a QR of Gaussian numbers, its signs set so that R has a positive diagonal. Two forward
    passes a step, no memory.

    Published settings: prompts lr 1e-3, eps 1e-2, r 24, renewed each 1000 steps; full weights lr
    1e-7, r 48. The authors' code makes LoRA's and prompts' matrices nearly square first; here
    the rank is cut to that of the matrix.

    References:
        Yu et al., "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces", 2024, algorithm 1.
    """

    Options = SubZeroOptions

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """See `ZerothOrder.shapes`."""
        return on_matrices(blocks, RandomSubspace(self.own.r))

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        kept, count = step.slow(self.own.renew), self.estimator.directions
        directions = [step.direction(number, kept) for number in range(count)]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients)]


@dataclass(frozen=True)
class SubZeroPlusOptions(SubZeroOptions):
    """The options of `SubZeroPlus`."""

    queries: int = option(30, "directions a step, each on one side", least=1, most=256)
    beta1: float = option(0.9, "decay of the first moment", least=0.0, below=1.0)
    beta2: float = option(0.95, "decay of the second moment", least=0.0, below=1.0)
    adam_eps: float = option(1e-8, "what is added to the root of the second moment", above=0.0)


class SubZeroPlus(SubZero):
    """Adam on the mean of many one-sided estimates inside one subspace.

    ``Zbar = 1 / K sum_k rho_k Z_k``, ``rho_k = (L(theta + eps u_k) - L(theta)) / eps``; M and V
    [r, r] are Adam's moments of Zbar; ``W <- W - lr U (M / (sqrt(V) + adam_eps)) V^T``, bias
    corrected. Vectors take plain steps along their mean estimate's sign. K + 1 forward passes a
    step, 2 r^2 numbers a matrix. The paper does not say what becomes of the moments where the
    subspace is renewed: they are kept. u has SubZero's energy, so a probe is c times as long as
    the paper's at the same eps; rho then is c times as large, and Adam divides that out.

    Published settings: K 99 (K < 30 does badly), beta 0.9 and 0.95.

    References:
        SubZero+, arXiv 2608.15665, 2026, equations 4 to 11.
    """

    Options = SubZeroPlusOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: M and V."""
        rank = self.own.r

        def size(rows: int, columns: int) -> tuple[int, int]:
            own = min(rank, rows, columns)
            return own, own

        return {"first": Factor(size), "second": Factor(size)}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.queries + 1

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options, forms, kept = self.own, self.engine.forms, step.slow(self.own.renew)
        directions = [step.direction(number, kept) for number in range(options.queries)]
        here, *losses = yield [HERE, *(u.at(step.eps) for u in directions)]
        slopes = [(loss - here) / step.eps for loss in losses]
        first: dict[int, Tensor] = {}
        second: dict[int, Tensor] = {}
        lefts: dict[int, Tensor] = {}
        rights: dict[int, Tensor] = {}
        scale1, scale2 = (1.0 - beta**step.count for beta in (options.beta1, options.beta2))
        for index, m in step.state["first"].items():
            pairs = zip(slopes, directions, strict=True)
            drawn = [slope * forms.drawn(index, u.seed) for slope, u in pairs]
            mean = torch.stack(drawn).mean(0).view(m.shape)
            first[index] = options.beta1 * m + (1.0 - options.beta1) * mean
            v = step.state["second"][index]
            second[index] = options.beta2 * v + (1.0 - options.beta2) * mean.square()
            root = (second[index] / scale2).sqrt() + options.adam_eps
            left, rights[index] = forms.kept_of(index, kept)
            lefts[index] = left @ (first[index] / scale1 / root)
        estimate = rest(step.estimate(directions, slopes), self.blocks, first)
        move = along(lefts, rights) + sign_of(estimate)
        return [step.descend(move, 1.0), step.change(first=first, second=second)]
