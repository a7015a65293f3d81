"""The journal: every step of a run on disk, enough to do the run again without a forward pass."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Journal": "zopeft.journal.journal",
    "JournalHeader": "zopeft.journal.header",
    "header_of": "zopeft.journal.header",
    "fingerprint": "zopeft.journal.start",
    "load_start": "zopeft.journal.start",
    "rebuild": "zopeft.journal.replay",
    "save_start": "zopeft.journal.start",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
