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
        # A handle's symbols are looked for in what the library itself is linked to.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBRARY))
        return ctypes.cast(getattr(library, ENTRY), ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0
