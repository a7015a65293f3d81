"""Sorts of blocks, and what share of a direction's power each has by what was seen of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zopeft.blocks import Block

POWER, POWER_OF_TURNS = 2.0, 1.0
"""The power of ``E_k / h_k`` that a share is, by probes and by turns."""
TRUST = 0.5
"""How little of the shares as the scales give them is left."""


def sort_of(block: Block) -> str:
    """Returns which sort of blocks a block is of."""
    if block.role != block.base_role:
        return block.role
    return "vocabulary" if block.role in ("embed", "head") else "rest"


@dataclass(frozen=True)
class Sort:
    """What first probes have shown of one sort of blocks.

    Args:
        given: Its share of the budget as the scales have it.
        energy: E, the mean of ``projected_grad^2`` with the whole budget on it.
        curvature: h, the mean of ``u' H u`` with the whole budget on it; 0 where rounding hides it.
    """

    given: float
    energy: float
    curvature: float


def shares(sorts: Sequence[Sort], power: float = POWER) -> list[float]:
    """Returns each sort's share of the budget, [K], with a sum of one.

    Where a bend is lost, or nowhere to be seen, E alone counts. Where a sort does not change the
    loss at all, such as LoRA's A while B is zero, all shares stay as given.

    Args:
        sorts: What was seen of each sort, [K].
        power: That of ``E_k / h_k``.
    """
    if any(not (math.isfinite(one.energy) and one.energy > 0.0) for one in sorts):
        return [one.given for one in sorts]
    bent = all(math.isfinite(one.curvature) and one.curvature > 0.0 for one in sorts)
    logs = [
        (1.0 - TRUST) * math.log(one.given)
        + power * math.log(one.energy / (one.curvature if bent else 1.0))
        for one in sorts
    ]
    found = [math.exp(log - max(logs)) for log in logs]
    return [one / sum(found) for one in found]
