"""Workers and the process that started them: they end with it, and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait


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
