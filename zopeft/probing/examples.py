"""Examples: what each of a batch's examples has of its loss, told to who listens.

A loss is a mean over examples, and a loss function that makes it so has their losses at hand. From
them a run learns how well its examples agree about where to go (`zopeft.optim.signal`), without
a forward pass. Losses that are no such means, and runs that nobody listens to, tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

Heard = list[tuple[Tensor, Tensor]]
"""Of each forward: losses of the examples of its copies, [P, B], and their weights, [B]: a copy's
loss is the weighted sum, and the weights have a sum of one."""
_HEARD: ContextVar[Heard | None] = ContextVar("_HEARD", default=None)


@contextmanager
def listening(on: bool = True) -> Iterator[Heard]:
    """Inside, loss functions tell the losses of examples; yields where they are gathered.

    Args:
        on: Whether anybody listens; if not, nothing is gathered.
    """
    gathered: Heard = []
    token = _HEARD.set(gathered if on else None)
    try:
        yield gathered
    finally:
        _HEARD.reset(token)


def heard() -> bool:
    """Whether somebody listens."""
    return _HEARD.get() is not None


def tell(make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Tells what one forward has found of each example, if somebody listens.

    Args:
        make: Returns losses [P, B] and weights [B], see `Heard`.
    """
    gathered = _HEARD.get()
    if gathered is not None:
        losses, weights = make()
        gathered.append((losses.detach().float(), weights.detach().float()))
