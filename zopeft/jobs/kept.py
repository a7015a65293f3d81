"""What is left in the folder of a run that broke off, and how to go on with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zopeft.errors import InputError

_RESUMED = {"tune": "go on with: zopeft tune --resume --out {}"}
_RESUMED["bench"] = "to go on, repeat the command with --resume --out {}"
_ANEW = "to start again, repeat the command with --overwrite --out {}"


def again(job: str, folder: Path) -> str:
    """Returns how to go on with a job that broke off, or else how to start it again.

    Args:
        job: The job's name in its record.
        folder: Its folder.
    """
    return _RESUMED.get(job, _ANEW).format(shlex.quote(str(folder)))


@dataclass(frozen=True)
class Kept:
    """What of a job can be gone on from.

    Attributes:
        count: Returns how much of it is in a folder.
        unit: What is counted, in the singular.
    """

    count: Callable[[Path], int]
    unit: str

    def __call__(self, folder: Path) -> str:
        """Returns it in words, "12 steps are kept in OUT"."""
        number = self.count(folder)
        words = f"1 {self.unit} is" if number == 1 else f"{number or 'no'} {self.unit}s are"
        return f"{words} kept in {folder}"


def steps_of(folder: Path) -> int:
    """Returns the steps of a tuning run that can be gone on from: 0 where none is kept.

    They are in its journal or, with methods and settings that leave none, in its newest
    whole checkpoint.
    """
    from zopeft.journal import Journal
    from zopeft.training.checkpoints import newest_checkpoint, read_seal

    try:
        found = Journal.open(folder / "journal.bin").next_step
    except InputError:
        found = 0
    checkpoint = newest_checkpoint(folder)
    sealed = None if checkpoint is None else read_seal(checkpoint)
    return max(found, int(sealed["step"]) if sealed else 0)
