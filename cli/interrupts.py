"""Ctrl-C and the signals that end a process: one line, and what is kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TYPERS_INTERRUPT = 130
"""What Typer (0.29) returns for a ``KeyboardInterrupt`` that reaches it, without a word."""
_SIGNALS = ("SIGTERM", "SIGHUP")


class InterruptError(Exception):
    """A command was interrupted; the text is its one line.

    No ``KeyboardInterrupt``, since Typer would keep that to itself.
    """


class Ended(KeyboardInterrupt):
    """A signal asked the process to end; jobs treat it as they do Ctrl-C."""


def line_of(error: KeyboardInterrupt) -> str:
    """Returns what is told of an interrupt: the signal, and the job's note on what is kept.

    Args:
        error: The interrupt.
    """
    cause = f" by {error}" if isinstance(error, Ended) else ""
    # Of jobs within jobs, the last to speak is the one that was asked for.
    return "; ".join([f"interrupted{cause}", *getattr(error, "__notes__", [])[-1:]])


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end what is done inside as Ctrl-C does.

    In the middle of a step Ctrl-C waits for the step's end; a second one does not.

    A signal that is ignored (as ``nohup`` has it) or handled already stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        for number in taken:
            signal.signal(number, _end)
        if interrupts:
            signal.signal(signal.SIGINT, _interrupt)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    raise Ended(signal.Signals(number).name)


def _interrupt(number: int, frame: Any) -> None:
    # Light: where no job of steps has been loaded, none is being made.
    module = sys.modules.get("zopeft.jobs.stopping")
    if module is not None and module.stopping.ask():
        # Not by `print`, whose stream may be in the middle of a line.
        os.write(2, b"\ninterrupted: this step is finished first; again to stop at once\n")
        return
    raise KeyboardInterrupt
