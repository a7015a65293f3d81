"""The threads that compiled kernels run on: as many as PyTorch uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from zopeft.kernels import runs
from zopeft.kernels.runs import LENGTH, Table

ALONE = 1 << 16
"""Elements up to which waking another thread takes longer than it saves."""
SHARES = 4
"""Shares a thread: a thread that is held up leaves the rest to the others."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """The waiting threads, of this process: a forked one starts its own."""
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="zopeft")
    return _pools[key]


def share_out(table: Table, call: Callable[[slice], None]) -> None:
    """Calls a function for all rows of a table, on several threads where that pays.

    Args:
        table: The runs, [n, 6].
        call: Takes a slice of the table's rows.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(table) == 1 or table[:, LENGTH].sum() <= ALONE:
        call(slice(None))
        return
    parts = iter(runs.shares(table, threads * SHARES))

    def work(parts: Iterator[slice] = parts) -> None:
        for part in parts:
            call(part)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()
