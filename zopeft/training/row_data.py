"""Rows of a distributed run: which batches a process is given, by its row of the grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zopeft.training.grid import Grid


class _Row:
    """The state of accelerate as it would be if the rows of a grid were its processes."""

    def __init__(self, state: Any, count: int, number: int) -> None:
        self._state, self.num_processes, self.process_index = state, count, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


@contextmanager
def rows_of(accelerator: Any, grid: Grid, number: int) -> Iterator[None]:
    """Has an accelerator prepare data for a process by its row of the grid.

    Args:
        accelerator: Accelerate's `Accelerator`.
        grid: Who runs what.
        number: The process. One that has nothing to do is given the first row's.
    """
    if grid.columns == 1:
        yield
        return
    state, config = accelerator.state, accelerator.dataloader_config
    dispatch = config.dispatch_batches
    accelerator.state = _Row(state, grid.rows, max(0, grid.place(number)[0]))
    # Otherwise one process would read a stream and deal out parts of each batch.
    config.dispatch_batches = False
    try:
        yield
    finally:
        accelerator.state, config.dispatch_batches = state, dispatch
