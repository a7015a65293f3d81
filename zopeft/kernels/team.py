"""PyTorch's own threads, lent for a moment to a function.

After an operation on several threads OpenMP's workers wait for the next one awake, for some
milliseconds and on every core: threads of our own beside them get half of each. So work between two
operations is given to the workers that are awake already, by the function that a compiler
calls for ``#pragma omp parallel``, of the library that PyTorch itself has loaded.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch

LIBRARY = "libtorch_cpu.so"
ENTRY = "GOMP_parallel"
"""GNU's name of it; LLVM's and Intel's OpenMP have it for programs compiled by GCC. It takes a
function of one pointer, that pointer, how many threads are wanted, and flags."""

_home = os.getpid()


def entry() -> int:
    """Returns the function's address; 0 where PyTorch's threads cannot be lent.

    They cannot in a forked process, which has none of them, and where PyTorch has others.
    """
    return _entry() if os.getpid() == _home else 0


@lru_cache(maxsize=1)
def _entry() -> int:
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBRARY))
        linked = getattr(library, ENTRY)
        # PyTorch's own calls go to the first library that is there for all, such as one that was
        # loaded before it by LD_PRELOAD, and then to the one that it is linked to.
        found = getattr(ctypes.CDLL(None), ENTRY, linked)
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
