"""What a meta-training has seen of signal and curvature, as a tuning run may begin with it."""

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

    Args:
        config: The fine-tuner's configuration; its training holds the statistics.
        match: Groups of the blocks.
        scales: Standard deviations s of the blocks' noise, [N].

    Returns:
        The share, above 0; None where no block has statistics.
    """
    signal = energy = 0.0
    for number, entry in _entries(config, match):
        own = _numbers(entry)
        if own is not None:
            power = float(scales[number]) ** 2
            signal += power * max(own[0], SIGNAL_FLOOR * own[1])
            energy += power * own[1]
    return signal / energy if energy > 0.0 and math.isfinite(signal / energy) else None


def learned_curvature(config: FineTunerConfig, match: Match) -> float | None:
    """Returns ``E[u' H u] = sum s_i^2 h_i`` along the directions of a run over whole weights.

    h is the curvature of the block's own directions, s its scale, as the statistics hold both.

    Args:
        config: The fine-tuner's configuration; its training holds the statistics.
        match: Groups of the blocks.

    Returns:
        The curvature, above 0; None where no block has statistics.
    """
    found = 0.0
    for _, entry in _entries(config, match):
        own = _pair(entry, "curvature", "scale")
        if own is not None:
            found += own[1] ** 2 * max(0.0, own[0])
    return found if found > 0.0 and math.isfinite(found) else None


def _entries(config: FineTunerConfig, match: Match) -> list[tuple[int, Any]]:
    """Returns the statistics of each block that is served, with its index.

    They are those of the block itself or, where each block has its own group, those of the block
    that its group was learned on.
    """
    statistics = config.training.get("statistics")
    if not isinstance(statistics, Mapping):
        return []
    by_group = list(statistics.values())
    if config.sharing != "block" or len(by_group) != len(config.groups):
        by_group = [None] * len(config.groups)
    return [
        (number, by_group[group] or statistics.get(block.name))
        for number, (block, group) in enumerate(
            zip(match.blocks, match.group.tolist(), strict=True)
        )
        if group >= 0
    ]


def _numbers(entry: Any) -> tuple[float, float] | None:
    """Returns S and E of an entry of a file; None where they are not numbers."""
    found = _pair(entry, "signal", "energy")
    return found if found is not None and found[1] > 0.0 else None


def _pair(entry: Any, first: str, second: str) -> tuple[float, float] | None:
    if not isinstance(entry, Mapping):
        return None
    found = entry.get(first), entry.get(second)
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in found):
        return None
    one, other = (float(one) for one in found if one is not None)
    return one, other
