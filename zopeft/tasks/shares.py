"""Shares: how many rows of each part an epoch of a mixture holds, and which.

An epoch holds of each part as many rows as its weight says, and every row of every part at least
once: parts that are short of their weight are gone through several times. Which rows stand once
more than others is drawn by the run's seed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zopeft.errors import input_error

MOST = 4
"""An epoch holds at most so many times the rows that there are."""


@dataclass(frozen=True)
class Share:
    """What a mixture takes of one of its parts.

    Attributes:
        name: The file, folder or hub id.
        kind: What its rows are.
        share: Its share of the rows to train on, between 0 and 1.
        rows: Its rows; 0 where they are streamed, and not counted.
        taken: How many rows of an epoch are its.
    """

    name: str
    kind: str
    share: float
    rows: int
    taken: int

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.name} {self.share:.3g} ({self.kind}, streamed)"
        times = self.taken / self.rows
        how = f"{self.taken:,} of {self.rows:,} rows" if times < 1 else f"{self.rows:,} rows"
        how += f", each {times:.3g} times" if times > 1 else ""
        return f"{self.name} {self.share:.3g} ({self.kind}, {how})"


def shares_of(mixture: Mapping[str, float | None], sizes: Sequence[int]) -> list[float]:
    """Returns each part's share of the rows.

    Args:
        mixture: Part to its weight; None for what its rows are of what is left.
        sizes: Rows of each part.

    Raises:
        InputError: A weight is no positive number, or nothing is left for a part without one.
    """
    for name, weight in mixture.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if weight is not None and not (number and 0 < weight < float("inf")):
            do = "give a share, for example 0.3"
            raise input_error("data.mixture", f"{name}: a weight is a positive number", weight, do)
    given = [weight for weight in mixture.values() if weight is not None]
    total = sum(given)
    free = sum(size for size, w in zip(sizes, mixture.values(), strict=True) if w is None)
    if free == 0:
        return [float(weight or 0.0) / total for weight in mixture.values()]
    if total >= 1:
        name = next(name for name, weight in mixture.items() if weight is None)
        what = f"the other weights leave nothing for {name}"
        raise input_error("data.mixture", what, f"{total:g}", "give it a weight, too")
    pairs = zip(sizes, mixture.values(), strict=True)
    return [(1 - total) * size / free if w is None else float(w) for size, w in pairs]


def epoch(sizes: Sequence[int], shares: Sequence[float], seed: int) -> list[int]:
    """Returns the rows of an epoch, numbered through all parts, the parts evenly among another.

    Args:
        sizes: Rows of each part.
        shares: Each part's share of the epoch.
        seed: Seed of the draw of those that stand once more than others of their part.
    """
    pairs = list(zip(sizes, shares, strict=True))
    count = min(max(size / share for size, share in pairs), MOST * sum(sizes))
    found: list[tuple[float, int, int]] = []
    begin = 0
    for part, (size, share) in enumerate(pairs):
        taken = max(1, round(count * share))
        order = list(range(size))
        random.Random(f"{seed} {part}").shuffle(order)
        rows = sorted(order[: taken % size]) + [*range(size)] * (taken // size)
        found += [((k + 0.5) / taken, part, begin + row) for k, row in enumerate(rows)]
        begin += size
    return [row for _, _, row in sorted(found, key=lambda one: one[:2])]
