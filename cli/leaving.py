"""The end of a command's own process: what ends with it anyway is not taken apart first.

Python frees every object of a process one by one as it ends, those of 3,500 modules, and torch its
tables. Where nobody but zopeft and its libraries had a say, all that is to be done at the end has
been asked for with `atexit`, and the process can go when that is done. What was asked for last is
done first: where something had been asked for before this was (by what measures tests, for
instance), the process ends as any other does.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys

OURS = 1
"""What has been asked for when a command begins: that logging closes its files."""


class Leaving:
    """How this process ends.

    Attributes:
        code: Its exit code; None as long as its command is not through.
    """

    code: int | None = None


def leave_at_once() -> None:
    """Has this process end as soon as its command and what `atexit` was asked for are through."""
    count = getattr(atexit, "_ncallbacks", None)
    if count is not None and count() <= OURS:
        atexit.register(_leave)


def _leave() -> None:
    if Leaving.code is None:
        return
    try:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except Exception:
        # Python tells of it as it ends.
        return
    os._exit(Leaving.code)
