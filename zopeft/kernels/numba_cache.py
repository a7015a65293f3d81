"""When kernels are compiled, and where they are kept from one run of Python to the next.

A run uses two or three of them, and each is compiled, or read where it is kept, when it is first
called. numba keeps them beside their file or in the user's cache folder. A package and a home that
are both read-only (containers, shared installations) or full are no reason not to run: a
folder of the user's own among the temporary ones serves, or the kernels are compiled anew.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import logging
import os
import pickle
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numba

logger = logging.getLogger(__name__)

UNKEPT = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)
"""What numba raises where it finds no folder, cannot write there, or finds a damaged file."""


SPREAD = """
def {name}(bounds, entry, threads, {names}):
    _spread(bounds, entry, threads, _kernel, ({names},))
"""
"""What is compiled of a kernel, with the arguments that follow its begin and end. A text, and
no function in a function: what is kept of those is found again by what they enclose."""


class Kernel:
    """A kernel that is compiled when it is first called.

    It is called with ``bounds, entry, threads`` (see `numba_kernels._spreading`) and its arguments.

    Args:
        function: What it does.
        compile_one: Compiles it.
    """

    def __init__(self, function: Any, compile_one: Callable[[Any], Any]) -> None:
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._function, self._compile, self._lock = function, compile_one, Lock()
        self._machine_code: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Calls it."""
        code = self._machine_code
        return (self.ready() if code is None else code)(*arguments)

    def ready(self) -> Any:
        """Returns its machine code, compiled by the first thread that asks for it."""
        with self._lock:
            if self._machine_code is None:
                self._machine_code = self._compile(self._function)
        return self._machine_code


class Keeping:
    """Compiles kernels, and has them kept where that can be done.

    The first kernel that cannot be kept in a place decides for the ones after it.

    Args:
        spread: An intrinsic that calls a kernel part by part.

    Attributes:
        kernels: All that it was given.
    """

    def __init__(self, spread: Any) -> None:
        self._spread = spread
        # None: where numba would; a folder; "": nowhere.
        self._place: str | None = None
        self._lock = Lock()
        self.kernels: list[Kernel] = []

    def compiled(self, signature: str) -> Callable[[Any], Kernel]:
        """Returns a decorator that has a function compiled for one signature.

        Args:
            signature: The types of what follows begin and end, in numba's words.
        """
        signature = f"void(i8[::1], i8, i8, {signature})"

        def compile_one(kernel: Any) -> Any:
            function = self._spreading(kernel)
            with self._lock:
                while self._place != "":
                    try:
                        with _cache_in(self._place):
                            return numba.njit(signature, nogil=True, cache=True)(function)
                    except UNKEPT as error:
                        self._place = self._next_place(error)
                return numba.njit(signature, nogil=True)(function)

        def take(function: Any) -> Kernel:
            self.kernels.append(Kernel(function, compile_one))
            return self.kernels[-1]

        return take

    def _spreading(self, kernel: Any) -> Any:
        """Returns the function that calls a kernel part by part."""
        code = kernel.__code__
        names = ", ".join(code.co_varnames[2 : code.co_argcount])
        text = SPREAD.format(name=f"{kernel.__name__}_spread", names=names)
        found = {
            "__name__": kernel.__module__,
            "_spread": self._spread,
            "_kernel": numba.njit(kernel),
        }
        exec(compile(text, code.co_filename, "exec"), found)
        return found[f"{kernel.__name__}_spread"]

    def _next_place(self, error: Exception) -> str:
        own = "" if self._place else _own_temporary_folder()
        where = f"in {own}" if own else "nowhere: every run compiles them anew, some seconds"
        line = " ".join(str(error).split())
        logger.warning("numba cannot keep compiled kernels (%s); they are kept %s", line, where)
        return own


@contextmanager
def _cache_in(place: str | None) -> Iterator[None]:
    settings: Any = numba.config
    before = settings.CACHE_DIR
    try:
        if place is not None:
            settings.CACHE_DIR = place
        yield
    finally:
        settings.CACHE_DIR = before


def _own_temporary_folder() -> str:
    """Returns a temporary folder that nobody else can write to, "" where there is none.

    What is kept in it is run: in a folder of another user's making it could be anything.
    """
    try:
        path = Path(tempfile.gettempdir()) / f"zopeft-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return ""
    safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return str(path) if safe and not found.st_mode & 0o077 else ""
