"""A loss function that counts the forward passes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class CountedLoss:
    """A loss function that counts its calls and keeps the last loss.

    Args:
        function: Called with model and batch, returns the loss.
    """

    def __init__(self, function: Callable[[nn.Module, Any], Tensor]) -> None:
        self.function = function
        self.calls = 0
        self.last: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.function(model, batch)
        self._count(1, loss.detach())
        return loss

    def _count(self, passes: int, last: Tensor) -> None:
        self.calls += passes
        self.last = last

    @property
    def own_loss(self) -> Callable[[nn.Module, Any], Tensor]:
        """The function that is counted."""
        return self.function

    @property
    def stacked(self) -> Callable[[nn.Module, Any, int], Tensor]:
        """The function's own ``stacked``, counted; missing where it has none."""
        stacked: Callable[[nn.Module, Any, int], Tensor] = self.function.stacked  # type: ignore[attr-defined]

        def counted(model: nn.Module, batch: Any, count: int) -> Tensor:
            losses = stacked(model, batch, count)
            self._count(count, losses.detach().mean())
            return losses

        return counted

    @property
    def needed(self) -> Callable[[Any], Tensor | None]:
        """The function's own ``needed``; missing where it has none."""
        needed: Callable[[Any], Tensor | None] = self.function.needed  # type: ignore[attr-defined]
        return needed

    @property
    def begin(self) -> Callable[[int], None]:
        """The function's own ``begin``; missing where it has none."""
        begin: Callable[[int], None] = self.function.begin  # type: ignore[attr-defined]
        return begin

    @property
    def flat(self) -> bool:
        """The function's own ``flat``; missing where it has none."""
        return bool(self.function.flat)  # type: ignore[attr-defined]

    @property
    def shaped(self) -> Callable[[Tensor], Tensor | None]:
        """The function's own ``shaped``; missing where it has none."""
        shaped: Callable[[Tensor], Tensor | None] = self.function.shaped  # type: ignore[attr-defined]
        return shaped

    @property
    def problem(self) -> str:
        """The function's own ``problem``; missing where it has none."""
        return str(self.function.problem)  # type: ignore[attr-defined]

    @property
    def tokens(self) -> Callable[[Any], int]:
        """The function's own ``tokens``; missing where it has none."""
        tokens: Callable[[Any], int] = self.function.tokens  # type: ignore[attr-defined]
        return tokens

    @property
    def grouped(self) -> Callable[[nn.Module, Any, int, int | None], Tensor]:
        """The function's own ``grouped``, counted as forwards; missing where it has none."""
        grouped: Callable[..., Tensor] = self.function.grouped  # type: ignore[attr-defined]

        def counted(model: nn.Module, batch: Any, count: int, only: int | None) -> Tensor:
            losses = grouped(model, batch, count, only)
            # Of groups that run by themselves, all together are one pass over the batch.
            self._count(int(only in (None, 0)), losses.detach().mean())
            return losses

        return counted
