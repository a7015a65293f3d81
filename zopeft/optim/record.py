"""What one step did, in full: enough to do it again without a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from zopeft.optim.rounds import Rounds


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

    @property
    def seen(self) -> float:
        """The mean of what the probes were scored with, as a loss, before it was shaped."""
        scores = (self.notes or {}).get("scores")
        return self.loss if scores is None else -float(scores.mean())

    def all_losses(self) -> tuple[float, ...]:
        """Returns every loss in the order that the step's plan asked for it."""
        if self.asked:
            return self.asked
        centre = () if self.centre is None else (self.centre,)
        mirror = () if self.mirror is None else (self.mirror,)
        return (*centre, *self.losses, *mirror)


def record_of(
    rounds: Rounds,
    rates: Sequence[float],
    decay: float,
    memory: Tensor | None,
    unread: Iterable[int],
    skipped: bool,
) -> StepRecord:
    """Returns the record of a step whose losses are complete, or not finite.

    Args:
        rounds: The step's rounds.
        rates: Learning rate of each block, [N].
        decay: Weight decay.
        memory: What the method itself needs to go on from here; None if nothing.
        unread: Indices of the blocks that no forward pass has read.
        skipped: Whether a loss was not finite.
    """
    step, taken, asked = rounds.step, rounds.step.taken, tuple(rounds.asked)
    last = taken.first + taken.count if taken.count else len(asked)
    plain = len(asked) == last + taken.mirrored
    return StepRecord(
        step=step.number,
        seed=step.seed,
        losses=asked[taken.first : last],
        projected_grads=taken.gradients or (0.0,) * step.method.estimator.directions,
        lr=(rates[0],) if len(set(rates)) == 1 else tuple(rates),
        eps=step.eps,
        decay=decay,
        scales=_plain(step.scales),
        memory=_plain(memory),
        skipped=skipped,
        centre=asked[taken.first - 1] if taken.first else None,
        mirror=asked[last] if taken.mirrored else None,
        asked=() if plain else asked,
        first=taken.first,
        notes=step.notes or None,
        unread=packed(unread),
    )


def _plain(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else tensor.detach().float().cpu().numpy()
