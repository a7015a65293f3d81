"""Workers and the process that started them: they end with it, and leave Ctrl-C to it."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any


@contextmanager
def interrupts_withheld() -> Iterator[None]:
    """Keeps Ctrl-C, for good, from processes that are started inside; it is the caller's.

    The caller's own comes at the end: SIGINT is blocked meanwhile, not ignored, and a
    process inherits what is blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(module: str, name: str, *arguments: Any) -> None:
    """What a worker's process is started with: it is bound to its caller before anything else.

    Args:
        module: A module, imported here: that takes seconds where it needs torch.
        name: A function in it.
        *arguments: The function's.
    """
    end_with_the_caller()
    getattr(importlib.import_module(module), name)(*arguments)


def end_with_the_caller() -> None:
    """Ends this process as soon as the one that started it is gone, however that ended."""
    caller = multiprocessing.parent_process()
    if caller is None:
        return

    def watch() -> None:
        # One end of a pipe, whose other end the system closes with the caller.
        wait([caller.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="zopeft-caller", daemon=True).start()
