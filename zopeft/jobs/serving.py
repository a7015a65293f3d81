"""Serving: which group of a fine-tuner serves which block, and the scale that comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zopeft.report.heatmap import Cell

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.finetuner import FineTuner, Match

TYPICAL_LOSS = 1.0
"""Loss at which scales are shown; 0 is what a run's first step uses."""


@dataclass(frozen=True, eq=False)
class Serving:
    """A fine-tuner on a model's blocks.

    Attributes:
        match: Which group serves which block.
        raw: The networks' outputs, one a block.
        scales: What multiplies the noise, one a block.
        loss: The losses of the step before that the networks have read.
    """

    match: Match
    raw: list[float]
    scales: list[float]
    loss: float

    def rows(self) -> list[dict[str, Any]]:
        """One dict a block: those of `Match.rows` with ``numel``, ``raw`` and ``scale``."""
        rows = self.match.rows()
        for row, block, raw, scale in zip(
            rows, self.match.blocks, self.raw, self.scales, strict=True
        ):
            row |= {"numel": block.numel, "raw": raw, "scale": scale}
        return rows

    def cells(self) -> list[Cell]:
        """The scales as cells of a heatmap."""
        return [
            Cell(block.layer, column_of(block.role, block.base_role), scale, how != "none")
            for block, scale, how in zip(
                self.match.blocks, self.scales, self.match.how, strict=True
            )
        ]


def serve(
    blocks: Blocks, finetuner: FineTuner, loss: float = TYPICAL_LOSS, allow_none: bool = False
) -> Serving:
    """Returns the scales that a fine-tuner gives a model's blocks.

    They are those of a step whose predecessor had both losses at `loss` and the raw scale 1
    everywhere; with 0 that is the first step of a run, exactly.

    Args:
        blocks: The blocks, with their weights.
        finetuner: The fine-tuner.
        loss: Both losses of the step before.
        allow_none: Accept that no block is matched.

    Raises:
        InputError: No block is matched, and `allow_none` is off.
    """
    import torch

    from zopeft.engine import Engine

    match = finetuner.match(blocks, allow_none)
    mean, variance = Engine(blocks).statistics()
    numels = torch.tensor(blocks.numels, dtype=torch.float32, device=mean.device)
    with torch.no_grad():
        features = finetuner.features(
            match, mean.float(), variance.float(), (loss, loss), torch.ones_like(numels)
        )
        raw = finetuner.raw_scales(match, features)
        scales = finetuner.used_scales(match, raw, numels)
    return Serving(match, raw.tolist(), scales.tolist(), loss)


def bare_cells(finetuner: FineTuner, loss: float = TYPICAL_LOSS) -> list[Cell]:
    """Returns each group's raw scale without a model: mean and variance 0, last raw scale 1.

    Without the blocks' sizes there is no normalisation. A model's means and variances are
    small numbers, and move the networks little.
    """
    import torch

    from zopeft.finetuner.features import Observed, stack_features

    groups = finetuner.config.groups
    # Networks that know an average read what is missing as that.
    missing = math.nan if finetuner.config.output == "bounded" else 0.0
    blank = torch.full((len(groups),), missing)
    depth = torch.tensor([math.nan if g.depth is None else g.depth for g in groups])
    losses = torch.tensor([loss, loss])
    seen = Observed(blank, blank, losses, torch.ones(len(groups)), depth)
    with torch.no_grad():
        features = stack_features(finetuner.config.features, seen)
        raw = finetuner.nets(features, torch.arange(len(groups))).tolist()
    return [
        Cell(group.layer, column_of(group.role, group.base_role), value)
        for group, value in zip(groups, raw, strict=True)
    ]


def column_of(role: str, base_role: str) -> str:
    """Returns what a block is called across layers: its role, and on which tensor."""
    return role if role == base_role else f"{base_role} {role}"
