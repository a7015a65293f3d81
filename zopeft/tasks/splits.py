"""Splits: which files of a folder hold which rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from zopeft.errors import input_error
from zopeft.tasks.files import READERS, Source, joined, kind_of, read_file

logger = logging.getLogger(__name__)

_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
_OF = re.compile(r"-(\d+)-of-(\d+)\.")


def _places(folder: Path) -> list[Path]:
    """The folders whose files count, the first that has any."""
    return [place for place in (folder, folder / "data") if place.is_dir()]


def _split_of(path: Path) -> str:
    name = path.name.lower().split(".")[0].split("-")[0]
    return _ALIASES.get(name, name)


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """Returns the splits that a folder holds: name to its files, in order.

    ``train.jsonl``, ``train-00000-of-00002.parquet`` and the same under ``data/`` are the
    split ``train``; ``dev`` and ``valid`` are ``validation``. Upper case is as good as lower.
    """
    found: dict[str, list[Path]] = {}
    for place in _places(folder):
        for path in sorted(place.glob("*")):
            if kind_of(path) and path.is_file():
                found.setdefault(_split_of(path), []).append(path)
        if found:
            break
    return found


def unread_in(folder: Path, split: str) -> list[str]:
    """Returns the names of files that have a split's name and a format that is not read."""
    files = [path for place in _places(folder) for path in sorted(place.glob("*"))]
    return [p.name for p in files if p.is_file() and not kind_of(p) and _split_of(p) == split]


def known_formats() -> str:
    """Returns the formats of files that are read, for messages."""
    return ", ".join(READERS) + ", each also with .gz"


def read_split(name: str, files: Sequence[Path]) -> Source:
    """Returns the rows of a split, which may lie in several files.

    Args:
        name: Folder and split, for messages.
        files: The files.

    Raises:
        InputError: A file can't be read; or several files seem to hold the same rows, or some
            of them are missing.
    """
    check_split(name, files)
    if len(files) == 1:
        return read_file(files[0])
    names = ", ".join(path.name for path in files)
    found = joined(name, [read_file(path) for path in files])
    logger.warning("%s: %d rows of %d files together: %s", name, len(found.rows), len(files), names)
    return found


def check_split(name: str, files: Sequence[Path]) -> None:
    """Refuses files that are not a split, or not all of it.

    Args:
        name: Folder and split, for messages.
        files: The files.

    Raises:
        InputError: Several files seem to hold the same rows, or some of them are missing.
    """
    names = ", ".join(path.name for path in files)
    whole = [path for path in files if "-" not in path.name and path.name.count(".") == _dots(path)]
    if len(files) > 1 and (whole or len({kind_of(path) for path in files}) > 1):
        raise input_error(
            name,
            f"{len(files)} files that may hold the same rows",
            names,
            "keep one, or name parts train-1, train-2, ... in one format",
        )
    _check_complete(name, files)


def _dots(path: Path) -> int:
    """Points in a file's name that belong to its suffixes."""
    return 2 if path.name.lower().endswith(".gz") else 1


def _check_complete(name: str, files: Sequence[Path]) -> None:
    """Refuses files that count themselves, ``-00000-of-00002``, where some are missing."""
    counts = [found for path in files if (found := _OF.search(path.name))]
    if not counts:
        return
    numbers, totals = {int(one[1]) for one in counts}, {int(one[2]) for one in counts}
    if len(counts) != len(files) or len(totals) > 1 or len(numbers) != max(totals):
        raise input_error(
            name,
            f"{len(numbers)} of {max(totals)} parts are there, or parts of two sets",
            ", ".join(path.name for path in files),
            "bring the others",
        )
