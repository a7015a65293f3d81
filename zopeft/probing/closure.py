"""Closures: the loss of one batch, and what more some of them can do."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.probing.examples import begin_forward, end_forward


class Closure(Protocol):
    """The loss of one batch: called once for each probe, each time for the same batch."""

    def __call__(self) -> Tensor:
        """Returns the loss, 0-dim."""
        ...


def loss_of(closure: Any) -> Tensor:
    """Calls a closure and returns its loss, 0-dim in fp32; a plain number is taken, too.

    Raises:
        InputError: What it returns is not one number.
    """
    begin_forward()
    found: Any = closure()
    if isinstance(found, Tensor) and found.numel() == 1:
        loss = found.detach().float().reshape(())
        end_forward(loss)
        return loss
    if not isinstance(found, Tensor):
        try:
            return torch.tensor(float(found))
        except (TypeError, ValueError):
            pass
    got = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise input_error("closure", "must return the loss, one number", got, "return model(...).loss")


class StackedClosure(Closure, Protocol):
    """One whose probes can share a forward, such as `zopeft.BatchLoss`.

    Attributes:
        tokens: Tokens of one forward, with padding; 0 where that is not known.
    """

    @property
    def tokens(self) -> int:
        """See above."""
        ...

    def stacked(self, count: int) -> Tensor:
        """Returns the losses [count] of copies of the batch, from one forward.

        Raises:
            UnstackableError: It cannot be run so.
        """
        ...


class GroupedClosure(Closure, Protocol):
    """One that tells the losses of groups of the batch's examples."""

    def grouped(self, count: int, only: int | None) -> Tensor:
        """Returns what each of `count` groups has of the batch's loss, or one of them alone.

        Raises:
            UnstackableError: All of them cannot be had from one forward.
        """
        ...


def stackable(closure: Closure) -> StackedClosure | None:
    """Returns a closure as one whose probes can share a forward; None if they cannot."""
    return cast(StackedClosure, closure) if hasattr(closure, "stacked") else None


def groupable(closure: Closure) -> GroupedClosure | None:
    """Returns a closure as one that tells the losses of groups; None if it does not."""
    return cast(GroupedClosure, closure) if hasattr(closure, "grouped") else None
