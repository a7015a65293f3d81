"""The threads that compiled kernels run on: as many as PyTorch uses."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zopeft.kernels import runs
from zopeft.kernels.numba_cache import Kernel
from zopeft.kernels.runs import LENGTH, Table
from zopeft.kernels.team import entry

ALONE = 1 << 16
"""Elements up to which calling for another thread takes longer than it saves."""
SHARES = 4
"""Shares a thread: a thread that is held up leaves the rest to the others."""

KNOWN = 4096
"""Tables whose parts are kept at most."""

_known: dict[int, tuple[weakref.ref[Table], int, npt.NDArray[np.int64]]] = {}
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    """The waiting threads, of this process: a forked one starts its own."""
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="zopeft")
    return _pools[key]


def _bounds(table: Table, threads: int) -> npt.NDArray[np.int64]:
    """Where the parts of a table begin and end; looked up where it has been asked for before."""
    known = _known.get(id(table))
    if known is not None and known[0]() is table and known[1] == threads:
        return known[2]
    alone = threads == 1 or len(table) < 2 or table[:, LENGTH].sum() <= ALONE
    found = np.array([0, len(table)], np.int64) if alone else runs.bounds(table, threads * SHARES)
    if len(_known) >= KNOWN:
        _known.clear()
    _known[id(table)] = weakref.ref(table), threads, found
    return found


def share_out(kernel: Kernel, table: Table, *arguments: Any) -> None:
    """Has a kernel work on all rows of a table, on several threads where that pays.

    Args:
        kernel: The kernel.
        table: The runs, [n, 6].
        arguments: What the kernel takes after the table.
    """
    threads = torch.get_num_threads()
    bounds = _bounds(table, threads)
    if len(bounds) == 2:
        kernel(bounds, 0, 1, table, *arguments)
        return
    if found := entry():
        kernel(bounds, found, threads, table, *arguments)
        return
    parts = iter(range(len(bounds) - 1))

    def work(parts: Iterator[int] = parts) -> None:
        for part in parts:
            kernel(bounds[part : part + 2], 0, 1, table, *arguments)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.result()
