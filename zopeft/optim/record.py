"""What one step did, in full: enough to do it again without a forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def packed(indices: Iterable[int]) -> NDArray[np.uint8]:
    """Returns `StepRecord.unread` of some blocks' indices."""
    found = sorted(indices)
    mask = np.zeros(found[-1] + 1 if found else 0, dtype=bool)
    mask[found] = True
    return np.packbits(mask)


@dataclass(frozen=True, eq=False)
class StepRecord:
    """One step of a zeroth-order method.

    Args:
        step: The step's number, from 0.
        seed: 64-bit key of the step's first direction, from which those of the others follow.
        losses: loss_plus and loss_minus (averaged over micro-batches), a pair a direction; of
            one-sided steps loss_plus of each direction.
        projected_grads: What the step goes along each direction, in units of ``lr / K``: see
            `zopeft.optim.estimator.Estimator`.
        lr: Learning rate; one number, or one a block.
        eps: Finite-difference step.
        decay: Weight decay.
        scales: fp32 [N], scales as used; None for ones.
        memory: fp32, whatever the method itself needs to go on from here; None if nothing.
        skipped: Whether the losses were not finite, so that the weights stayed as they were.
        centre: Loss at the weights themselves, of steps that have taken it; else None.
        mirror: Loss on the other side of the first direction, of one-sided steps that have
            taken it; else None.
        unread: Which blocks no forward pass of the step has read, and the step left alone, as
            packed bits of the blocks' numbers; empty if all were read, None if nobody looked.
        asked: Every loss in the order that the step's plan asked for it, `losses`, `centre`
            and `mirror` among them; empty where there are no others than these.
        first: Which of `asked` is the first of `losses`.
        notes: fp32 arrays that the step's plan took from elsewhere, by name; None for none.
    """

    step: int
    seed: int
    losses: tuple[float, ...]
    projected_grads: tuple[float, ...]
    lr: tuple[float, ...]
    eps: float
    decay: float
    scales: NDArray[np.float32] | None = None
    memory: NDArray[np.float32] | None = None
    skipped: bool = False
    centre: float | None = None
    mirror: float | None = None
    unread: NDArray[np.uint8] | None = None
    asked: tuple[float, ...] = ()
    first: int = 0
    notes: dict[str, NDArray[np.float32]] | None = None

    @property
    def left_alone(self) -> list[int]:
        """Indices of the blocks that the step left alone."""
        if self.unread is None:
            return []
        found: list[int] = np.flatnonzero(np.unpackbits(self.unread)).tolist()
        return found

    @property
    def loss(self) -> float:
        """The mean of the probes' losses."""
        return sum(self.losses) / len(self.losses)

    def all_losses(self) -> tuple[float, ...]:
        """Returns every loss in the order that the step's plan asked for it."""
        if self.asked:
            return self.asked
        centre = () if self.centre is None else (self.centre,)
        mirror = () if self.mirror is None else (self.mirror,)
        return (*centre, *self.losses, *mirror)
