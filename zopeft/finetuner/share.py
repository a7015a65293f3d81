"""The share of signal that a meta-training has seen, as a tuning run may begin with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zopeft.finetuner.config import FineTunerConfig
from zopeft.finetuner.matching import Match

SIGNAL_FLOOR = 0.01
"""Least share of a block's energy that counts as signal: S may come out at or below zero."""


def learned_share(config: FineTunerConfig, match: Match, scales: Tensor) -> float | None:
    """Returns ``A / G = sum s_i^2 S_i / sum s_i^2 E_i`` over the blocks with statistics.

    S and E are those of the block itself or, where each block has its own group, those of
    the block that its group was learned on.

    Args:
        config: The fine-tuner's configuration; its training holds the statistics.
        match: Groups of the blocks.
        scales: Standard deviations s of the blocks' noise, [N].

    Returns:
        The share, above 0; None where no block has statistics.
    """
    statistics = config.training.get("statistics")
    if not isinstance(statistics, Mapping):
        return None
    by_group = list(statistics.values())
    if config.sharing != "block" or len(by_group) != len(config.groups):
        by_group = [None] * len(config.groups)
    signal = energy = 0.0
    groups = match.group.tolist()
    for block, group, scale in zip(match.blocks, groups, scales.tolist(), strict=True):
        if group < 0:
            continue
        own = _numbers(by_group[group] or statistics.get(block.name))
        if own is not None:
            signal += scale**2 * max(own[0], SIGNAL_FLOOR * own[1])
            energy += scale**2 * own[1]
    return signal / energy if energy > 0.0 and math.isfinite(signal / energy) else None


def _numbers(entry: Any) -> tuple[float, float] | None:
    """Returns S and E of an entry of a file; None where they are not numbers."""
    if not isinstance(entry, Mapping):
        return None
    found = entry.get("signal"), entry.get("energy")
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
        return None
    signal, energy = (float(one) for one in found if one is not None)
    return (signal, energy) if energy > 0.0 else None
