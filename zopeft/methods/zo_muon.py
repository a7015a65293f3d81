"""ZO-Muon: an orthogonalised step inside a kept subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.kept import Rotated, orthonormal
from zopeft.engine.vector import HERE
from zopeft.optim.declared import Options, option
from zopeft.optim.factors import along, mean_rights, on_matrices, rest
from zopeft.optim.state import Factor, Kept, PerBlock
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's quintic iteration."""


@dataclass(frozen=True)
class MuonOptions(Options):
    """The options of `ZOMuon`."""

    r: int = option(64, "rank of the subspace; at most a matrix's rows", least=1, most=512)
    renew: int = option(100, "steps for which a subspace is kept", least=1)
    queries: int = option(4, "directions a step, each on one side", least=1, most=64)
    vectors: float = option(1e-5, "learning rate of vectors, as a multiple of lr", least=0.0)
    exact: bool = option(False, "orthogonalise by an SVD, not by five Newton-Schulz steps")


class ZOMuon(ZerothOrder):
    """``G = 1 / N sum_i rho_i Psi_i; W <- W - lr P msign(G)``, P [O, r] orthonormal and kept.

    ``u_i = c P Psi_i``, ``rho_i = (L(theta + eps u_i) - L(theta)) / eps``; msign(G) has G's
    singular vectors and singular values one, so what rho is counted in does not matter (c keeps
    the energy of isotropic noise). Vectors take plain steps at a rate of their own. N + 1
    forward passes a step, no memory beyond the step.

    Published settings: OPT-13B lr 1e-2, r 64, renewed each 100 steps, N 4; vectors at 1e-7. The
    public code draws another P for each query and each restore where P is renewed, so that
    probe and step disagree there.

    References:
        Lang et al., "Powering Up Zeroth-Order Training via Subspace Gradient Orthogonalization",
        2026, algorithm 1.
        Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    Options = MuonOptions
    gradient_units = False
    single = True

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """See `ZerothOrder.shapes`."""
        return on_matrices(blocks, Rotated(self.own.r))

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
        means = mean_rights(forms, slopes, directions)
        lefts = {index: forms.kept_of(index, kept) for index in means}
        rights = {i: orthogonalised(mean, options.exact) for i, mean in means.items()}
        vectors = rest(step.estimate(directions, slopes), self.blocks, lefts)
        return [step.descend(along(lefts, rights) + options.vectors * vectors, 1.0)]


def orthogonalised(matrix: Tensor, exact: bool) -> Tensor:
    """Returns msign of a matrix, its singular values made one (by Newton-Schulz, nearly).

    Args:
        matrix: fp32 [r, I].
        exact: Whether by an SVD.
    """
    if not bool(matrix.any()):
        return torch.zeros_like(matrix)
    if exact:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ right
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if tall else x


@dataclass(frozen=True)
class MOPIOptions(Options):
    """The options of `ZOMOPI`."""

    r: int = option(64, "rank of the subspace; at most a matrix's rows", least=1, most=512)
    k: int = option(32, "rank of the step; at most that of the subspace", least=1, most=512)
    renew: int = option(500, "steps for which a subspace is kept", least=1)
    queries: int = option(8, "directions a step, each on two sides", least=1, most=64)
    beta: float = option(0.0, "decay of the momentum", least=0.0, below=1.0)
    vectors: float = option(1e-5, "learning rate of vectors, as a multiple of lr", least=0.0)


class ZOMOPI(ZerothOrder):
    """ZO-Muon with momentum, orthogonalised in part by one power iteration.

    ``M <- beta M + (1 - beta) G; V <- QR(M^T (M V)); U <- M V / |M V|`` by column; ``W <- W - lr
    P U V^T``, G as in `ZOMuon` but two-sided. V [I, k] goes on from the step before, and begins
    with the first k rows of M. 2 N forward passes a step; r I + I k numbers a matrix. Where P
    is renewed, ``M <- P_new^T P_old M`` first.

    Published settings: lr 5e-3 to 1e-2, r 64, k 32, renewed each 500 steps, N 8, beta 0. The
    public code restores a probe with another u than it was made with where P is renewed.

    References:
        ZO-MOPI, 2026: partial orthogonalisation by a streaming power iteration.
    """

    Options = MOPIOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: M and V, and the step that M's P was drawn in."""
        r, k = self.own.r, self.own.k

        def momentum(rows: int, columns: int) -> tuple[int, int]:
            return min(r, rows), columns

        def basis(rows: int, columns: int) -> tuple[int, int]:
            return columns, min(k, r, rows, columns)

        own = {"momentum": Factor(momentum), "basis": Factor(basis)}
        return {**own, "stage": PerBlock(-1.0)}

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """See `ZerothOrder.shapes`."""
        return on_matrices(blocks, Rotated(self.own.r))

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return 2 * self.own.queries

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options, forms, stage = self.own, self.engine.forms, step.stage(self.own.renew)
        kept, stages = step.slow_of(stage), step.state["stage"]
        directions = [step.direction(number, kept) for number in range(options.queries)]
        found = yield [u.at(side * step.eps) for u in directions for side in (1, -1)]
        pairs = zip(found[::2], found[1::2], strict=True)
        slopes = [(plus - minus) / (2.0 * step.eps) for plus, minus in pairs]
        lefts: dict[int, Tensor] = {}
        rights: dict[int, Tensor] = {}
        momenta: dict[int, Tensor] = {}
        bases: dict[int, Tensor] = {}
        for index, estimate in mean_rights(forms, slopes, directions).items():
            before = step.state["momentum"][index]
            if int(stages[index]) not in (-1, stage):
                old = forms.kept_of(index, step.slow_of(int(stages[index])))
                before = forms.kept_of(index, kept).t() @ (old @ before)
            m = options.beta * before + (1.0 - options.beta) * estimate
            v = step.state["basis"][index]
            start = v if bool(v.any()) else m[: v.shape[1]].t()
            momenta[index], basis = m, orthonormal(m.t() @ (m @ start))
            image = m @ basis
            unit = image / image.norm(dim=0).clamp(min=torch.finfo(image.dtype).tiny)
            bases[index], lefts[index] = basis, forms.kept_of(index, kept) @ unit
            rights[index] = basis.t().contiguous()
        vectors = rest(step.estimate(directions, slopes), self.blocks, lefts)
        move = along(lefts, rights) + options.vectors * vectors
        stages = torch.full_like(stages, stage)
        change = step.change(momentum=momenta, basis=bases, stage=stages)
        return [step.descend(move, 1.0), change]
