"""Closures: the loss of one batch, and what more some of them can do."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor


class Closure(Protocol):
    """The loss of one batch: called once for each probe, each time for the same batch."""

    def __call__(self) -> Tensor:
        """Returns the loss, 0-dim."""
        ...


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
