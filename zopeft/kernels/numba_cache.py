"""Where compiled kernels are kept from one run of Python to the next.

numba keeps them beside their file or in the user's cache folder. A package and a home that
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
from typing import Any

import numba

logger = logging.getLogger(__name__)

UNKEPT = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)
"""What numba raises where it finds no folder, cannot write there, or finds a damaged file."""


class Keeping:
    """Compiles kernels, and has them kept where that can be done.

    The first kernel that cannot be kept in a place decides for the ones after it.
    """

    def __init__(self) -> None:
        # None: where numba would; a folder; "": nowhere.
        self._place: str | None = None

    def compiled(self, signature: str) -> Callable[[Any], Any]:
        """Returns a decorator that compiles a function for one signature.

        Args:
            signature: Its types, in numba's words.
        """

        def compile_one(function: Any) -> Any:
            while self._place != "":
                try:
                    with _cache_in(self._place):
                        return numba.njit(signature, nogil=True, cache=True)(function)
                except UNKEPT as error:
                    self._place = self._next_place(error)
            return numba.njit(signature, nogil=True)(function)

        return compile_one

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
