"""LOREN: noise shaped by a rank-one curvature of each matrix's rows, which is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.engine.vector import Rowwise, Vector
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Factor, Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LORENOptions(Options):
    """The options of `LOREN`."""

    queries: int = option(6, "directions a step, each on one side", least=2, most=64)
    rho: float = option(0.1, "curvature across a", above=0.0)
    lr_curvature: float = option(1e-3, "learning rate of a", least=0.0)
    beta: float = option(0.9, "decay of the momentum", least=0.0, below=1.0)


class LOREN(ZerothOrder):
    """``u = S^(1/2) z`` for each row of a matrix, ``S = (rho I + a a^T)^-1``, a [I] learned.

    ``c_k = (L_k - mean L) / (eps (K - 1))`` with ``L_k = L(theta + eps u_k)``: each direction's
    baseline is the mean of the others. ``m <- beta m + (1 - beta) sum_k c_k u_k; theta <- theta -
    lr m``. a takes a natural-evolution step, ``a <- a - lr_curvature sum_k c_k eps grad_a log
    N(u_k; 0, S)``, ``grad_a = S a - u (u'a)``, the mean over rows. K forward passes a step; one
    number a weight, and I a matrix. Vectors have isotropic noise. a begins as one direction of
    length sqrt(rho), drawn once.

    Published settings: K 6, rho 0.1, lr_curvature 1e-3, beta 0.9, eps 1e-3. The released code
    draws with a root of rho S, not of S, so its eps is sqrt(rho) smaller; it takes one product
    over the whole matrix in place of one a row, and writes inside the loop over k, with K
    decays of the momentum a step.

    References:
        "Low-Rank Curvature for Zeroth-Order Optimization in LLM Fine-tuning", 2026, LOREN.
    """

    Options = LORENOptions
    gradient_units = False
    single = True
    spaces = ("full", "adapter")
    shards = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m and a."""
        return {"momentum": PerElement(), "curvature": Factor(lambda _, columns: (columns,))}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.queries

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options, curvature = self.own, self._curvature(step)
        zs = [step.direction(number) for number in range(options.queries)]
        directions: list[Vector] = [shaped(z, curvature, options.rho) for z in zs]
        losses = yield [u.at(step.eps) for u in directions]
        mean, others = sum(losses) / len(losses), len(losses) - 1
        pulls = [(loss - mean) / (step.eps * others) for loss in losses]
        estimate = step.estimate(directions, [pull * len(pulls) for pull in pulls])
        renewed = {
            index: a - options.lr_curvature * step.eps * self._slope(index, a, directions, pulls)
            for index, a in curvature.items()
        }

        def moved(lr: float, weight: Tensor, estimate: Tensor, momentum: Tensor) -> tuple:
            momentum.mul_(options.beta).add_(estimate, alpha=1.0 - options.beta)
            return weight.sub_(momentum, alpha=lr), momentum

        write = step.map(moved, estimate, state=["momentum"])
        return [write, step.change(curvature=renewed)]

    def _curvature(self, step: Step) -> dict[int, Tensor]:
        """Returns each matrix's a; where it has none yet, the one that it begins with."""
        found = {}
        for index, a in step.state["curvature"].items():
            if not bool(a.any()):
                block = self.blocks[index]
                tensors = [(block.address, a.numel())]
                (drawn,) = self.engine.kernels.draw(step.once("curvature"), 0, tensors, a.device)
                a = drawn * (math.sqrt(self.own.rho) / drawn.norm())
            found[index] = a
        return found

    def _slope(self, index: int, a: Tensor, directions: list[Vector], pulls: list[float]) -> Tensor:
        """Returns ``sum_k c_k grad_a log N(u_k; 0, S)``, the mean over a matrix's rows, [I]."""
        total, weight = torch.zeros_like(a), self.engine.weights(index)
        square, rows = a.square().sum(), self.blocks[index].shape[0]
        for part in self.engine.elements.parts(index, weight):
            for u, pull in zip(directions, pulls, strict=True):
                numbers = u.values(part)
                total -= pull / rows * (numbers * (numbers @ a).unsqueeze(1)).sum(0)
        return total + sum(pulls) * a / (self.own.rho + square)


def shaped(noise: Vector, curvature: Mapping[int, Tensor], rho: float) -> Vector:
    """Returns ``S^(1/2) z`` for the rows of matrices, S as of `LOREN`; vectors as they are.

    ``S^(1/2) = (I - a a^T / |a|^2) / sqrt(rho) + a a^T / |a|^2 / sqrt(rho + |a|^2)``.
    """

    def rooted(index: int, numbers: Tensor) -> Tensor:
        a = curvature.get(index)
        if a is None:
            return numbers
        square = a.square().sum()
        across, along = rho**-0.5, (rho + square).rsqrt()
        part = (numbers @ a).unsqueeze(1) * a
        return numbers.mul_(across).add_(part * ((along - across) / square))

    return Rowwise(rooted, noise)
