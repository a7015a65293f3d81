"""A reader that `fuzz.py` tries: its good files, what is done to them, and how they are read."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]
CASE = "from-a-stranger"
"""Name of the folders that are given to readers."""


@dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Args:
        name: On the command line.
        files: Returns the good files, name to content.
        damage: Name of a file to what is done to it; one is chosen a case.
        read: Called with the file, or with the folder where there are several files.
        folder: Whether the folder is read.
        told: What else than its name stands for the file in an error, such as a server's.
        depth: What of the whole path is not tried, in a word for rows; "" for all of it.
    """

    name: str
    files: Callable[[], Mapping[str, bytes]]
    damage: Mapping[str, Damage]
    read: Callable[[Path], Any]
    folder: bool = False
    told: tuple[str, ...] = ()
    depth: str = ""

    def good(self, place: Path) -> Path:
        """Writes the files as they are, and returns what is to be read."""
        return self._put(place, {}, next(iter(self.damage)))

    def make(self, place: Path, dice: random.Random) -> Path:
        """Writes the files, one of them damaged, and returns what is to be read."""
        victim = dice.choice(sorted(self.damage))
        content = self.damage[victim](self.files()[victim], dice)
        return self._put(place, {victim: content}, victim)

    def _put(self, place: Path, changed: Mapping[str, bytes], victim: str) -> Path:
        folder = place / CASE
        folder.mkdir(exist_ok=True)
        every = {**self.files(), **changed}
        for name in every if self.folder else (victim,):
            with open(f"{folder}/{name}", "wb") as file:
                file.write(every[name])
        return folder if self.folder else folder / victim

    def clear(self, place: Path) -> None:
        """Takes away what a case has left, so that the next one finds nothing of it."""
        shutil.rmtree(place / CASE, ignore_errors=True)
        for left in place.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
