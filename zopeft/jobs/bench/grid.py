"""The search for a learning rate: a geometric grid that grows where its best is at an edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zopeft.report.measures import best_of


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        lr: The best learning rate.
        edge: "high" or "low" where it is the last one tried on that side, else "".
        tried: Learning rate to its score, in the order of the rates.
    """

    lr: float
    edge: str
    tried: Mapping[float, float]


def rate_of(centre: float, ratio: float, place: int) -> float:
    """Returns the learning rate at a place of the grid, to six digits."""
    return float(f"{centre * ratio**place:.6g}")


def search(
    centre: float,
    ratio: float,
    points: int,
    extensions: int,
    score: Callable[[float], float],
) -> Found:
    """Tries ``centre ratio^k`` for the `points` whole k around 0, and more where needed.

    Where the best is at an edge, the grid grows by one point there, `extensions` times at
    most; what is still at an edge then is flagged. An even grid has its odd point below.

    Args:
        centre: The middle learning rate, > 0.
        ratio: From one to the next, > 1.
        points: Size of the grid, >= 1.
        extensions: Most points that it may grow by, >= 0.
        score: Returns what is to be small for a learning rate; may be infinite.
    """
    low = -(points // 2)
    high = low + points - 1
    tried = {rate_of(centre, ratio, k): math.nan for k in range(low, high + 1)}
    for rate in tried:
        tried[rate] = score(rate)
    for _ in range(extensions if points > 1 else 0):
        _, edge = best_of(tried)
        if not edge:
            break
        low, high = (low - 1, high) if edge == "low" else (low, high + 1)
        rate = rate_of(centre, ratio, low if edge == "low" else high)
        tried[rate] = score(rate)
    lr, edge = best_of(tried)
    return Found(lr, edge, dict(sorted(tried.items())))
