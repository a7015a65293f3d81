"""TeZO: fixed factors for the run, and new coordinates between them each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Shape
from zopeft.engine.kept import Coordinates
from zopeft.optim.declared import Options, option
from zopeft.optim.factors import of_rows, on_matrices, rest
from zopeft.optim.state import Factor, Kept
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class TeZOOptions(Options):
    """The options of `TeZO`."""

    r: int = option(
        64, "rank: how many directions of a matrix the run can ever take", least=1, most=1024
    )


class TeZO(ZerothOrder):
    """``u = U diag(tau) V^T / sqrt(r)``, U and V for the run, tau [r] new each step.

    ``theta <- theta - lr g u``; vectors have Gaussian noise. Two forward passes a step, no
    memory. The whole run moves a matrix within the span of r products, so r must be large; the
    paper chooses it for each layer from the spectrum, here it is one number.

    References:
        Sun et al., "TeZO: Empowering the Low-Rankness on the Temporal Dimension in the
        Zeroth-Order Optimization for Fine-tuning LLMs", 2025, algorithm 1.
    """

    Options = TeZOOptions

    def shapes(self, blocks: Blocks) -> Mapping[int, Shape]:
        """See `ZerothOrder.shapes`."""
        return on_matrices(blocks, Coordinates(self.own.r))

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        kept, count = step.once("factors"), self.estimator.directions
        directions = [step.direction(number, kept) for number in range(count)]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients)]


@dataclass(frozen=True)
class TeZOAdamOptions(TeZOOptions):
    """The options of `TeZOAdam`."""

    beta1: float = option(0.9, "decay of the first moment", least=0.0, below=1.0)
    beta2: float = option(0.99, "decay of the second moment", least=0.0, below=1.0)
    adam_eps: float = option(1e-8, "what is added to the second moment", above=0.0)


class TeZOAdam(TeZO):
    """Adam on TeZO's coordinates: its state is 2 r numbers a matrix.

    ``m <- b1 m + (1 - b1) g tau; v <- b2 v + (1 - b2) (g tau)^2; W <- W - lr U diag(m) V^T /
    sqrt(U^2 diag(v) (V^2)^T + adam_eps)``, squares by element, without bias correction.
    Vectors take ``lr g z / sqrt(g^2)``, the first step of such an Adam.

    References:
        Sun et al., "TeZO: Empowering the Low-Rankness on the Temporal Dimension in the
        Zeroth-Order Optimization for Fine-tuning LLMs", 2025, section 4.
    """

    Options = TeZOAdamOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: m and v."""
        rank = self.own.r
        return {"first": Factor(lambda *_: (rank,)), "second": Factor(lambda *_: (rank,))}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        options, forms, kept = self.own, self.engine.forms, step.once("factors")
        u = step.direction(0, kept)
        (gradient,) = yield from step.gradients([u])
        first: dict[int, Tensor] = {}
        second: dict[int, Tensor] = {}
        for index, m in step.state["first"].items():
            estimate = gradient * forms.drawn(index, u.seed)
            v = step.state["second"][index]
            first[index] = options.beta1 * m + (1.0 - options.beta1) * estimate
            second[index] = options.beta2 * v + (1.0 - options.beta2) * estimate.square()

        def numbers(index: int, rows: slice | Tensor) -> Tensor:
            left, right = forms.kept_of(index, kept)
            left = left[rows]
            square = (left.square() * second[index]) @ right.square()
            return ((left * first[index]) @ right) / torch.sqrt(square + options.adam_eps)

        sign = float((gradient > 0) - (gradient < 0))
        move = of_rows(numbers, first) + sign * rest(u, self.blocks, first)
        return [step.descend(move, 1.0), step.change(first=first, second=second)]
