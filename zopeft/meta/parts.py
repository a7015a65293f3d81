"""Parts: each rank's rows of a meta-step's batch, and what they count in its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zopeft.ranks import Ranks
from zopeft.tasks.loss import counted, task_loss
from zopeft.tasks.sampling import draw_labels

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """A rank's part of a batch.

    The batch's loss is a mean over N answer tokens, or examples with options. A part with n of
    them has the share ``n / N`` of it: the parts of all ranks, each times its share, add up to the
    batch's loss, and their gradients to its gradient.

    Attributes:
        batch: The rank's rows.
        first: Number of its first example in the whole batch.
        counts: n; 0 for a rank that has no rows of its own, and runs one for nothing.
        whole: N.
    """

    batch: Mapping[str, Any]
    first: int
    counts: int
    whole: int

    @property
    def share(self) -> float:
        """The share."""
        return self.counts / max(1, self.whole)

    def to(self, device: torch.device) -> Part:
        """Returns it with its tensors on a device."""
        return replace(self, batch=moved(self.batch, device))


class Parting:
    """Makes of the examples of a batch, which all ranks have, this rank's part.

    Neighbours stay together, and no rank has two examples more than another.

    Args:
        collate: From a list of examples to a batch.
        ranks: The ranks.
    """

    def __init__(self, collate: Collate, ranks: Ranks) -> None:
        self.collate, self.ranks = collate, ranks

    def __call__(self, examples: Sequence[Any]) -> Part:
        """Returns the part."""
        first, end = share_of(len(examples), self.ranks)
        whole = counted(self.collate(examples))
        if end > first:
            batch = self.collate(examples[first:end])
            if counted(batch) or not whole:
                return Part(batch, first, counted(batch), whole)
        # All ranks run a forward pass, so that nothing of it comes as a surprise later on.
        found = ((number, self.collate([one])) for number, one in enumerate(examples))
        number, batch = next(one for one in found if counted(one[1]) or not whole)
        return Part(batch, number, 0, whole)


def share_of(count: int, ranks: Ranks) -> tuple[int, int]:
    """Returns the first example of a rank, and the first of the next one."""
    return count * ranks.number // ranks.count, count * (ranks.number + 1) // ranks.count


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Returns a batch with its tensors on a device."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def part_loss(model: Any, part: Part) -> Tensor:
    """Returns what a part adds to the loss of its batch; 0-dim."""
    return task_loss(model, part.batch) * part.share


def part_labels(model: Any, part: Part, seed: int) -> tuple[Part, int]:
    """Returns a part with the labels that one process would draw for it, and N."""
    drawn, _ = draw_labels(model, part.batch, seed, part.first)
    return replace(part, batch=drawn), part.whole
