"""Tokenizers' threads: all cores for many texts, one for a few.

Versions of the tokenizers library warn in each process that is forked once they have run on
several threads, unless the environment says what is wanted. The command line says "one thread", so
that nothing is printed into its output, and takes that back while many texts are encoded. What the
user's own environment says holds throughout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "TOKENIZERS_PARALLELISM"
MANY = 500
"""Texts from which on it is worth waking other threads."""


class Held:
    """Who has decided for one thread.

    Attributes:
        by_us: Whether it was `hold_threads`, not the user.
    """

    by_us = False


def hold_threads() -> None:
    """Keeps tokenizers to one thread, where the environment says nothing of it."""
    if VARIABLE not in os.environ:
        os.environ[VARIABLE] = "false"
        Held.by_us = True


@contextmanager
def threads_for(texts: int) -> Iterator[None]:
    """Lets tokenizers use all cores inside, where that is ours to say and there is enough to do.

    Args:
        texts: How many are about to be encoded in one call.
    """
    if not Held.by_us or texts < MANY:
        yield
        return
    os.environ[VARIABLE] = "true"
    try:
        yield
    finally:
        os.environ[VARIABLE] = "false"
