"""Rows: how many trees of tokens are spread over rows, by what the rows cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Bin:
    """A row: how many places are filled, and with which items."""

    filled: int
    items: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Costs:
    """What a batch costs: its tokens, and what each is compared with in attention.

    Args:
        doubled: Row length at which attention takes as long as all else.
        limit: Places that a row may have, unless one text is longer: those that the model has
            positions for, or its attention's window; 0 for any number.
    """

    doubled: int
    limit: int = 0

    def of(self, rows: int, width: int) -> float:
        """The cost of rows under a mask, in tokens without attention."""
        return rows * width * (1 + width / self.doubled)

    def most(self, longest: int) -> int:
        """The places that a row may have where the longest text has so many tokens."""
        return max(longest, self.limit) if self.limit else 2**31

    def padded(self, rows: int, width: int) -> float:
        """The cost of rows of one text each: a causal mask alone takes half the attention."""
        return rows * width * (1 + width / (2 * self.doubled))


def spread(sizes: Sequence[int], start: int, most: int, costs: Costs) -> tuple[float, list[Bin]]:
    """Spreads items over rows, first fit decreasing, for the cheapest of some row lengths.

    Args:
        sizes: Places of each item, [n], n > 0.
        start: Places that each row needs once, beside its items.
        most: Places that a row may have, at least those of the largest item and the start.
        costs: What rows cost.

    Returns:
        The cost, and the rows.
    """
    order = sorted(range(len(sizes)), key=lambda item: (-sizes[item], item))
    least, total = start + max(sizes), sum(sizes)
    lengths = {least}
    count = 1
    while count < len(sizes):
        even = start - (-total // count)
        lengths |= {length for length in (even, even + even // 16) if least < length <= most}
        count += 1 + count // 4
    best: tuple[float, list[Bin]] | None = None
    for length in sorted(lengths):
        rows = _first_fit(sizes, order, start, length)
        cost = costs.of(len(rows), max(row.filled for row in rows))
        if best is None or cost < best[0]:
            best = cost, rows
    assert best is not None
    return best


def _first_fit(sizes: Sequence[int], order: Sequence[int], start: int, length: int) -> list[Bin]:
    rows: list[Bin] = []
    for item in order:
        row = next((row for row in rows if row.filled + sizes[item] <= length), None)
        if row is None:
            row = Bin(start)
            rows.append(row)
        row.filled += sizes[item]
        row.items.append(item)
    return rows
