"""Examples: what each of a batch's examples has of its loss, told to who listens.

A loss is a mean over examples, and a loss function that makes it so has their losses at hand. From
them a run learns how well its examples agree about where to go (`zopeft.optim.signal`), without
a forward pass. Losses that are no such means tell nothing, or do not come to what was told and are
not believed; where nobody listens, telling costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEAR = 1e-3
"""How far, as a part of it, a loss may be from the mean that it is told to be."""


@dataclass(frozen=True)
class Told:
    """What forwards have told of the examples of one batch.

    Args:
        losses: Of the examples at each probe, fp32 [P, B].
        weights: Of the examples: a probe's loss is the weighted sum of theirs, fp32 [B].
        returned: The losses that the forwards returned, fp32 [P].
    """

    losses: Tensor
    weights: Tensor
    returned: Tensor

    @property
    def holds(self) -> bool:
        """Whether the losses of the examples make those that were returned."""
        off = self.losses @ self.weights - self.returned
        return bool((off.abs() <= NEAR * self.returned.abs()).all())


@dataclass
class Hearing:
    """What was heard, forward by forward.

    Attributes:
        parts: What the forward under way has told.
        forwards: What those before have told; None for one that has told nothing.
    """

    parts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    forwards: list[Told | None] = field(default_factory=list)

    def of(self, probes: int) -> Told | None:
        """Returns what was told of as many probes, on the processor; None if it is not known.

        So it is where somebody else has run some of them, or one was run again.
        """
        told = [one for one in self.forwards if one is not None]
        sizes = {len(one.weights) for one in told}
        known = len(told) == len(self.forwards) and len(sizes) == 1
        if not known or sum(len(one.losses) for one in told) != probes:
            return None
        losses, returned = _joined([one.losses for one in told], [one.returned for one in told])
        found = Told(losses, told[0].weights.cpu(), returned)
        return found if found.holds else None


_HEARING: ContextVar[Hearing | None] = ContextVar("_HEARING", default=None)


@contextmanager
def listening(on: bool = True) -> Iterator[Hearing]:
    """Inside, loss functions tell the losses of examples; yields where they are gathered.

    Args:
        on: Whether anybody listens; if not, nothing is gathered.
    """
    hearing = Hearing()
    token = _HEARING.set(hearing if on else None)
    try:
        yield hearing
    finally:
        _HEARING.reset(token)


def hearing() -> Hearing | None:
    """Returns what gathers the losses of examples; None if nobody listens."""
    return _HEARING.get()


def tell(make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Tells what the forward under way has found of each example, if somebody listens.

    A loss function calls this, once for all copies of a batch or once for each.

    Args:
        make: Returns the losses of the examples of each copy, [P, B], and the examples' weights in
            a copy's loss, [B].
    """
    own = _HEARING.get()
    if own is not None:
        losses, weights = make()
        own.parts.append((losses.detach().float(), weights.detach().float()))


def begin_forward() -> None:
    """Forgets what was told by a forward that came to nothing."""
    own = _HEARING.get()
    if own is not None:
        own.parts.clear()


def end_forward(returned: Tensor) -> None:
    """Takes what a forward has told together with what it returned.

    Args:
        returned: Its loss, or those of its copies, [P].
    """
    own = _HEARING.get()
    if own is None:
        return
    parts, losses = own.parts, returned.detach().float().reshape(-1)
    own.parts = []
    alike = len({len(weights) for _, weights in parts}) == 1
    if not alike or sum(len(told) for told, _ in parts) != len(losses):
        own.forwards.append(None)
        return
    own.forwards.append(Told(torch.cat([told for told, _ in parts]), parts[0][1], losses))


def _joined(*lists: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([one.cpu() for one in own]) for own in lists]
