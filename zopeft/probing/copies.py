"""The copies of a batch in one forward: where they lie in what a layer is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from zopeft.engine.carrier import UnstackableError


class Copies:
    """P copies of a batch, one below the other along its rows.

    The model's first input tensor says how many rows they have; a layer whose input is not
    these rows in this order is refused, not guessed at.

    Args:
        model: The model whose layers are asked about.
        head: Its output layer, which may be given the places alone that a loss reads: as many
            of each copy, one copy below the other.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None) -> None:
        self.model, self.head = model, head
        self.rows = self.length = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Takes note of rows and length of the batches that the model is given inside."""
        self.rows = self.length = 0
        hook = self.model.register_forward_pre_hook(self._look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _look(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        first = next((tensor for tensor in given if tensor.dim() >= 2), None)
        self.rows, self.length = (0, 0) if first is None else (first.shape[0], first.shape[1])

    def check(self, inputs: Tensor, count: int) -> None:
        """Checks that a layer is given the batch row by row, or token by token.

        Args:
            inputs: What it is given: [R, T, ...] or [R T, I].
            count: P.

        Raises:
            UnstackableError: It is given something else.
        """
        by_row = inputs.dim() >= 3 and inputs.shape[0] == self.rows
        # OPT, for one, lays all tokens of all rows in a line before its second half.
        in_line = inputs.dim() == 2 and inputs.shape[0] == self.rows * self.length
        if not (self.rows and self.rows % count == 0 and (by_row or in_line)):
            raise UnstackableError("a trained layer does not see the batch row by row", True)

    def dimension(self, module: nn.Module, inputs: Tensor, count: int) -> int:
        """Returns the dimension along which the copies lie in a layer's input and output.

        Args:
            module: The layer.
            inputs: What it is given; token ids [R, T], too.
            count: P.

        Raises:
            UnstackableError: As `check` does.
        """
        if module is self.head and inputs.dim() == 3 and inputs.shape[0] == 1 != self.rows:
            if inputs.shape[1] % count:
                raise UnstackableError("the output layer sees more of one copy", True)
            return 1
        ids = isinstance(module, nn.Embedding) and inputs.shape == (self.rows, self.length)
        if not ids or self.rows % count:
            self.check(inputs, count)
        return 0
