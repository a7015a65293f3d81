"""Dealing: an evaluation's batches shared out over processes, each found once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from zopeft.ranks import Ranks

Batch = TypeVar("Batch")
Found = TypeVar("Found")


def dealt(
    ranks: Ranks, batches: Iterable[Batch], find: Callable[[Batch, bool], Found]
) -> list[Found]:
    """Returns what is found of each batch, in their order, on all processes.

    Args:
        ranks: The processes; each takes its part of the batches.
        batches: The batches, the same on all of them.
        find: From a batch, and whether it is this process's last one, to what all are told.
    """
    found: list[Found] = []
    with ranks.gate():
        waiting: list[Batch] = []
        for turn, one in enumerate(batches):
            if turn % ranks.count == ranks.number:
                found += [find(before, False) for before in waiting]
                waiting = [one]
        found += [find(before, True) for before in waiting]
    every = ranks.everyone(found)
    most = max(map(len, every), default=0)
    return [part[turn] for turn in range(most) for part in every if turn < len(part)]
