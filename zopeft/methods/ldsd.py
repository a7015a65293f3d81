"""LDSD: candidates around a learned mean direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class LDSDOptions(Options):
    """The options of `LDSD`."""

    candidates: int = option(5, "K, directions that are tried on one side", least=2, most=64)
    lr_mean: float = option(0.04, "learning rate of the mean direction", least=0.0)
    sigma: float = option(1.0, "standard deviation around it", above=0.0)


class LDSD(ZerothOrder):
    """``u_i = mu + sigma z_i``; the best of K is probed on both sides, and mu learns from all.

    ``theta <- theta - lr g u*`` with u* of the least ``f_i = L(theta + eps u_i)``; ``mu <- mu -
    lr_mean / K sum_i (K f_i - sum f) / (K - 1) (u_i - mu) / sigma^2``. K + 2 forward passes a
    step, one number a weight.

    Published settings: LoRA, lr 1e-3, eps 1e-3, K 5, lr_mean 0.04, sigma 1. The public code
    seeds its generator once and draws through all K noises in the update of mu, so mu is moved
    along noise that was not probed.

    References:
        Parfenov et al., "Zero-Order Optimization for LLM Fine-Tuning via Learnable Direction
        Sampling", 2026, algorithm 1.
    """

    Options = LDSDOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: mu."""
        return {"mean": PerElement()}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.candidates + 2

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        count, sigma = self.own.candidates, self.own.sigma
        mean, zs = step.state.held("mean"), [step.direction(n) for n in range(count)]
        tried = [mean + sigma * z for z in zs]
        losses = yield [u.at(step.eps) for u in tried]
        best = tried[losses.index(min(losses))]
        plus, minus = yield [best.at(step.eps), best.at(-step.eps)]
        gradient = step.slope(plus, minus)
        pulls = [(count * loss - sum(losses)) / (count - 1) for loss in losses]
        pull = step.estimate(zs, [each / sigma for each in pulls])
        rate = self.own.lr_mean

        def moved(lr: float, weight: Tensor, best: Tensor, pull: Tensor, mean: Tensor) -> tuple:
            return weight.add_(best.mul_(-lr * gradient)), mean.sub_(pull, alpha=rate)

        return [step.map(moved, best, pull, state=["mean"])]
