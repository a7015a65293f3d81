"""BSZO: a Kalman filter over the projected gradients of a few directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zopeft.engine.vector import HERE
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, Number
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class BSZOOptions(Options):
    """The options of `BSZO`."""

    k: int = option(2, "directions a step, each on one side", least=1, most=64)
    prior: float = option(1.0, "variance of the projected gradients", above=0.0)
    measured: float = option(1.0, "variance of their measurement, to begin with", above=0.0)
    alpha: float = option(0.1, "share of a new residual in that variance", least=0.0, most=1.0)


class BSZO(ZerothOrder):
    """``theta <- theta - lr sum_i mu_i z_i``, mu the posterior mean of k projected gradients.

    ``y_i = (L(theta + eps z_i) - L(theta)) / eps``; prior ``N(0, prior I)``; for each axis ``K =
    S d / (d' S d + s); mu <- mu + K (y - d' mu); S <- S - K d' S``. Then ``s <- (1 - alpha) s +
    alpha r^2`` with r the residual of the last y, and one more such step on the axis of the
    largest variance. k + 1 forward passes a step, one number: s goes on from step to step.

    Published settings: k 2, eps 1e-4, batch 16, lr from 1e-7.

    References:
        "Robust and Efficient Zeroth-Order LLM Fine-Tuning via Adaptive Bayesian Subspace
        Optimizer", 2026, algorithm 1, equations 9 to 13.
    """

    Options = BSZOOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: s."""
        return {"noise": Number(self.own.measured)}

    @property
    def forwards(self) -> int:
        """See `Method.forwards`."""
        return self.own.k + 1

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        count = self.own.k
        directions = [step.direction(number) for number in range(count)]
        here, *losses = yield [HERE, *(z.at(step.eps) for z in directions)]
        slopes = [(loss - here) / step.eps for loss in losses]
        mean, spread = np.zeros(count), self.own.prior * np.eye(count)
        noise = step.state["noise"]
        for axis in range(count):
            mean, spread = filtered(mean, spread, axis, slopes[axis], noise)
        residual = slopes[-1] - mean[-1]
        noise = (1.0 - self.own.alpha) * noise + self.own.alpha * residual**2
        axis = int(np.argmax(np.diag(spread)))
        mean, spread = filtered(mean, spread, axis, slopes[axis], noise)
        gradients = [count * float(each) for each in mean]
        return [step.descend(directions, gradients), step.change(noise=noise)]


def filtered(
    mean: np.ndarray, spread: np.ndarray, axis: int, slope: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean [k] and covariance [k, k] after one axis has been measured."""
    gain = spread[:, axis] / (spread[axis, axis] + noise)
    return mean + gain * (slope - mean[axis]), spread - np.outer(gain, spread[axis])
