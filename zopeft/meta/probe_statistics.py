"""Signal, energy and curvature of groups of blocks, from forward probes alone.

With ``g = (L+ - L-) / (2 eps)`` along a group's own direction u, ``E g^2 = E`` is the group's
energy and ``E u' H u = h`` its curvature, as `BlockStatistics` means them, but that h is of the
loss itself and not of its Gauss-Newton matrix. ``E g_a g_b = S``, its signal, for g of one u on two
batches. A projected gradient squared scatters by 1.4 times its mean, so blocks are too many for
this; a group is all matrices of a role, or all vectors, or the quantisation scales of a role.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.blocks.scales import ROLE as SCALES
from zopeft.finetuner.seen import SIGNAL_FLOOR
from zopeft.optim.rate import SHARE

VECTORS = "vectors"
FEW = 8
"""Directions that say how unsure they are; fewer say nothing of what groups differ in."""
SURE = 2.0
"""Standard errors by which groups must differ more than noise would have them do."""


def groups_of_probes(blocks: Blocks) -> dict[str, list[int]]:
    """Returns the groups that are probed, and the indices of each one's blocks.

    Args:
        blocks: The blocks, [N].
    """
    found: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        found.setdefault(_group(block), []).append(index)
    return found


def _group(block: Block) -> str:
    if block.role == SCALES:
        return block.base_role
    return VECTORS if len(block.shape) == 1 else block.role


class ProbeStatistics:
    """S, E and h of every block, each a share by size of those of its group.

    What groups differ in are the signal's share ``S / E`` and ``log(h / E)``. Each group's is drawn
    towards that of all groups together as far as it is unsure (`drawn_together`): its standard
    error is that of leaving out one direction at a time.

    Args:
        blocks: The blocks, [N].
        scales: Standard deviations of the noise that the blocks are probed with, float64 [N]; None
            for ones.

    Attributes:
        groups: The groups' blocks, by name.
        kept: How much of what groups differ in was kept, from 0 to 1.
    """

    def __init__(self, blocks: Blocks, scales: Tensor | None = None) -> None:
        self.groups = groups_of_probes(blocks)
        self.scales = torch.ones(len(blocks), dtype=torch.float64) if scales is None else scales
        self.numels = torch.tensor(blocks.numels, dtype=torch.float64)
        self.kept = {"signal": 0.0, "curvature": 0.0}
        self._turns: list[Tensor] = []

    def begin(self) -> None:
        """Announces a new direction of each group."""
        self._turns.append(torch.zeros(4, len(self.groups), dtype=torch.float64))

    def take(self, slopes: Sequence[float], bends: Sequence[float]) -> None:
        """Takes what one batch shows along the directions of now; no number that is not finite.

        Args:
            slopes: Projected gradients g of the groups, [R].
            bends: ``(L+ + L- - 2 L) / eps^2``, [R].
        """
        slope, bend = (torch.tensor(each, dtype=torch.float64) for each in (slopes, bends))
        if bool((slope + bend).isfinite().all()):
            self._turns[-1] += torch.stack([torch.ones_like(slope), slope, slope**2, bend])

    @property
    def slopes(self) -> Tensor:
        """Mean projected gradients along the directions of now, [R]."""
        count, slope, *_ = self._turns[-1]
        return slope / count.clamp_min(1.0)

    @property
    def batches(self) -> int:
        """How many batches were taken."""
        return int(sum(float(turn[0, 0]) for turn in self._turns))

    def measured(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns S, E and h of the groups along what was probed, float64, each [R]."""
        return _means(*self._sums(torch.stack(self._turns)))

    def _sums(self, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Returns of turns [T, 4, R] the sums [4, R] and the sums of pairs' products [2, R]."""
        count, slope, square, _ = turns.unbind(1)
        pairs = torch.stack([count * (count - 1.0), slope**2 - square])
        return turns.sum(0), pairs.sum(1)

    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns S, E and h of the blocks along directions of scale one, float64, each [N]."""
        turns = torch.stack([turn for turn in self._turns if bool(turn[0].any())])
        whole, pairs = self._sums(turns)
        signal, energy, curvature = _means(whole, pairs)
        each = range(len(turns) if len(turns) >= FEW else 0)
        others = [_means(*self._sums(torch.cat([turns[:i], turns[i + 1 :]]))) for i in each]
        share = _together(signal, energy)
        error = _error([_together(s, e) for s, e, _ in others]).item()
        if not share > error:
            # Not even of all groups together is the signal sure: what a run begins with otherwise.
            share = SHARE
        shares, self.kept["signal"] = drawn_together(
            signal / energy, _error([s / e for s, e, _ in others]), share
        )
        bend = _together(curvature, energy)
        centre = math.log(bend) if bend > 0.0 else 0.0
        bends, self.kept["curvature"] = drawn_together(
            (curvature / energy).log(), _error([(h / e).log() for _, e, h in others]), centre
        )
        energies = energy.clamp_min(float(energy.max()) * 1e-12)
        shares = shares.clamp_min(SIGNAL_FLOOR)
        found = torch.zeros(3, len(self.numels), dtype=torch.float64)
        for number, indices in enumerate(self.groups.values()):
            part = self.numels[indices] / self.numels[indices].sum()
            own = energies[number] * part
            found[:, indices] = torch.stack([own * shares[number], own, own * bends[number].exp()])
        found /= self.scales.square()
        return found[0], found[1], found[2]


def _means(whole: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = whole[0].clamp_min(1.0)
    return pairs[1] / pairs[0].clamp_min(1.0), whole[2] / count, whole[3] / count


def _together(part: Tensor, energy: Tensor) -> float:
    return float(part.sum() / energy.sum())


def _error(without: Sequence[Tensor | float]) -> Tensor:
    """Returns the jackknife's standard error of what was found without one turn each, [R] or []."""
    if len(without) < FEW:
        return torch.tensor(math.inf)
    found = torch.stack([torch.as_tensor(one, dtype=torch.float64) for one in without])
    return ((len(found) - 1) / len(found) * (found - found.mean(0)).square().sum(0)).sqrt()


def drawn_together(values: Tensor, errors: Tensor, centre: float) -> tuple[Tensor, float]:
    """Draws values towards what they have in common, as far as they are unsure.

    ``centre + t^2 / (t^2 + e^2) (value - centre)`` with ``t^2 = mean (value - centre)^2 - mean
    e^2``; all are the centre where the first mean is not above the second by `SURE` of the
    standard errors that noise alone gives it, ``sqrt(2 / R)`` of it each.

    Args:
        values: [R]; one that is no number says nothing.
        errors: Their standard errors, [R] or 0-dim; one that is not finite: the value says nothing.
        centre: What they are drawn to.

    Returns:
        The values, [R], and the mean share of its deviation that a value keeps, from 0 to 1.

    References:
        Efron, Morris, "Data Analysis Using Stein's Estimator and Its Generalizations", 1975.
    """
    errors = errors.to(values).expand(values.shape)
    known = values.isfinite() & errors.isfinite()
    noise = errors[known].square()
    spread = (values[known] - centre).square()
    kept = torch.zeros_like(values)
    if len(noise) > 1:
        most = (1.0 + SURE * math.sqrt(2.0 / len(noise))) * float(noise.mean())
        if float(spread.mean()) > most:
            true = spread.mean() - noise.mean()
            kept[known] = true / (true + noise)
    moved = torch.where(known, values - centre, torch.zeros_like(values))
    return centre + kept * moved, float(kept.mean())
