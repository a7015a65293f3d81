"""A policy: PertNNs that move the scales about their closed form with the state of a run.

Learned on windows w of first-order runs, each with its statistics S, E, h and the features
x that a tuning run would see there:

``maximise  mean_w J(scales(x_w); S_w, E_w, h_w) - penalty mean_{w,i} deviation_i^2``

with ``scales_i = closed_form_i exp(deviation_i(x))``, J as in `zopeft.meta.signal`.

Three things keep J from being exploited, whose unchecked ascent puts nearly all noise on
two small norm blocks: the deviation is bounded; each block's deviation costs the same
however small the block is (a divergence weighted by noise power would cost small blocks
next to nothing); and each network's deviation has mean zero over the windows it learned
from, so that a policy can say how scales move with the state, but not replace the closed
form by another constant.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.finetuner import BoundedPertNN
from zopeft.finetuner.seen import SIGNAL_FLOOR
from zopeft.meta.signal import objective

LR = 1e-2
EPOCHS = 200
EVERY = 10
"""Epochs between two looks at the windows held out."""
ERRORS = 2.0
"""Standard errors that the gain on windows held out must exceed."""
LEAST_GAIN = 0.01
"""Gain, in nats of the expected fall of the loss a step, below which a policy is not worth it."""


@dataclass(frozen=True)
class Problem:
    """What a policy learns from.

    Attributes:
        features: [W, N, F], float32; NaN for what was not seen.
        signal: S, float64 [W, N].
        energy: E, float64 [W, N].
        curvature: h, float64 [W, N].
        parts: The part that each window is held out with, long [W].
        group: Each block's group, long [N].
    """

    features: Tensor
    signal: Tensor
    energy: Tensor
    curvature: Tensor
    parts: Tensor
    group: Tensor

    def some(self, chosen: Tensor) -> Problem:
        """Returns the chosen windows, bool [W]."""
        return Problem(
            self.features[chosen],
            self.signal[chosen],
            self.energy[chosen],
            self.curvature[chosen],
            self.parts[chosen],
            self.group,
        )

    def gains(self, prior: Tensor, deviation: Tensor) -> Tensor:
        """Returns each window's J over that of the fixed scales, [W].

        Args:
            prior: The fixed scales, [N].
            deviation: ``log(scale / prior)``, [W, N].
        """
        prior = prior.double().expand_as(self.signal)
        return self._value(prior * deviation.double().exp()) - self._value(prior)

    def _value(self, scales: Tensor) -> Tensor:
        """J with a floor under the sum of S, which noise may take below zero."""
        square = scales.square()
        low = SIGNAL_FLOOR * (square * self.energy).sum(-1) - (square * self.signal).sum(-1)
        lift = low.clamp_min(0.0)[:, None] / (square * self.energy).sum(-1, keepdim=True)
        return objective(scales, self.signal + lift * self.energy, self.energy, self.curvature)

    def audible(self, prior: Tensor) -> Tensor:
        """Tells which windows show more signal than the floor at the fixed scales, bool [W]."""
        square = prior.double().square()
        floor = SIGNAL_FLOOR * (square * self.energy).sum(-1)
        return (square * self.signal).sum(-1) > floor


@dataclass(frozen=True)
class Verdict:
    """What learning a policy came to.

    Attributes:
        kept: Whether the policy was kept; else the scales are the closed form.
        gain: Mean gain in J over the closed form on windows held out, in nats.
        error: Its standard error.
        epochs: Epochs that were best there.
        windows: Windows learned from.
        parts: Parts that were held out in turn.
        deviation: Root mean square of ``log(scale / closed form)`` over windows and blocks.
    """

    kept: bool
    gain: float
    error: float
    epochs: int
    windows: int
    parts: int
    deviation: float


def fit(nets: BoundedPertNN, problem: Problem, penalty: float) -> Verdict:
    """Learns a policy, in place; leaves the closed form if it gains nothing when held out.

    Each part of the windows is held out once while the networks learn from the others; the
    mean gain over all windows held out says after how many epochs to stop, and whether the
    policy is worth having. Then they learn from all windows.

    Args:
        nets: The networks, whose `prior` is the closed form and whose deviation is zero.
        problem: The windows.
        penalty: Weight of the squared deviation, at least 0.
    """
    prior = nets.prior[problem.group].cpu()
    problem = problem.some(problem.audible(prior))
    parts = problem.parts.unique().tolist()
    windows = len(problem.parts)
    if len(parts) < 2 or windows < 4:
        return Verdict(False, 0.0, math.nan, 0, windows, len(parts), 0.0)
    held = []
    for part in parts:
        out = problem.parts == part
        held.append(_learn(copy.deepcopy(nets), problem.some(~out), penalty, problem.some(out)))
    gains = torch.cat(held, dim=1)
    best = int(gains.mean(1).argmax())
    gain, error = float(gains[best].mean()), _error(gains[best], [one[best] for one in held])
    epochs = (best + 1) * EVERY
    if gain < LEAST_GAIN or gain < ERRORS * error:
        return Verdict(False, gain, error, epochs, windows, len(parts), 0.0)
    _learn(nets, problem, penalty, None, epochs)
    with torch.no_grad():
        deviation = _deviation(nets, problem)
        means = _group_means(nets, problem, deviation)
        # The fixed scale takes the centring: on average over windows it is the closed form.
        nets.prior.mul_(means.neg().exp())
        size = float((deviation - means[problem.group]).square().mean().sqrt())
    return Verdict(True, gain, error, epochs, windows, len(parts), size)


def _error(gains: Tensor, parts: list[Tensor]) -> float:
    """Returns the larger of two standard errors: over windows, and over parts held out."""
    means = torch.stack([part.mean() for part in parts])
    return max(float(one.std()) / math.sqrt(len(one)) for one in (gains, means))


def _learn(
    nets: BoundedPertNN,
    problem: Problem,
    penalty: float,
    held: Problem | None,
    epochs: int = EPOCHS,
) -> Tensor:
    """Runs Adam; returns the gains on the windows held out at each look, [looks, W held]."""
    _standardise(nets, problem)
    prior = nets.prior[problem.group]
    adam = torch.optim.Adam(nets.parameters(), lr=LR)
    looks = []
    for epoch in range(1, epochs + 1):
        deviation = _deviation(nets, problem)
        deviation = deviation - _means(nets, problem, deviation)
        loss = penalty * deviation.square().mean() - problem.gains(prior, deviation).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        if held is not None and epoch % EVERY == 0:
            with torch.no_grad():
                means = _means(nets, problem, _deviation(nets, problem))
                looks.append(held.gains(prior, _deviation(nets, held) - means))
    return torch.stack(looks) if looks else torch.empty(0)


@torch.no_grad()
def _standardise(nets: BoundedPertNN, problem: Problem) -> None:
    """Sets center and spread of the features to those of the windows."""
    for index, column in enumerate(problem.features.flatten(0, 1).unbind(1)):
        seen = column[column.isfinite()].double()
        spread = float(seen.std()) if len(seen) > 1 else 0.0
        nets.center[index] = float(seen.mean()) if len(seen) else 0.0
        # A feature that never changes is left as it is.
        nets.spread[index] = spread if spread > 1e-6 else 1.0


def _deviation(nets: BoundedPertNN, problem: Problem) -> Tensor:
    """Returns what the networks say, not centred, [W, N]."""
    windows, blocks, _ = problem.features.shape
    rows = problem.features.flatten(0, 1)
    return nets.deviation(rows, problem.group.repeat(windows)).view(windows, blocks)


def _group_means(nets: BoundedPertNN, problem: Problem, deviation: Tensor) -> Tensor:
    """Returns the mean of each network's deviations over windows and blocks, [G]."""
    blank = torch.zeros_like(nets.prior)
    counts = blank.index_add(0, problem.group, torch.ones_like(deviation[0]))
    return blank.index_add(0, problem.group, deviation.mean(0)) / counts.clamp_min(1)


def _means(nets: BoundedPertNN, problem: Problem, deviation: Tensor) -> Tensor:
    """Returns `_group_means` of each block's group, [N]."""
    return _group_means(nets, problem, deviation)[problem.group]
