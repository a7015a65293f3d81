"""Checkpoints: which of the folders that a run has left are whole.

A checkpoint is many files; a process that is killed may leave some of them missing or cut
short. So the last file written into each, ``complete.json``, lists the others with their
sizes, and a folder without a matching list does not count.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Any

from zopeft import __version__
from zopeft.errors import InputError, input_error
from zopeft.reading import checked, read_object, refuse_newer
from zopeft.staging import staged

logger = logging.getLogger(__name__)

SEAL = "complete.json"
SUMMED = 1 << 26
"""Bytes of the largest files whose content is summed; larger ones are known by their sizes."""
FORMAT_VERSION = 1
"""Of what is in a checkpoint beside its weights; those of before there was a number are of it."""
KINDS = {
    "step": "count",
    "run": "text",
    "files": "numbers",
    "sums": "numbers",
    "format_version": "count",
    "versions": "texts",
}
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: str | Path, step: int, run: str) -> None:
    """Marks a checkpoint as whole, after waiting for all of its files to be on the disk.

    Args:
        folder: The checkpoint's folder.
        step: Steps that the run had made.
        run: The run's name, as in its journal ("" without one).
    """
    folder = Path(folder)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
    sums = {name: _checksum(folder / name) for name, size in files.items() if size <= SUMMED}
    told = {"step": step, "run": run, "files": files, "sums": sums}
    told |= {"format_version": FORMAT_VERSION, "versions": {"zopeft": __version__}}
    with staged(folder / SEAL) as place, open(place, "w") as text:
        json.dump(told, text)
        text.flush()
        os.fsync(text.fileno())


def _is_within(folder: Path, name: str) -> bool:
    """Whether a name is that of a plain file in a folder: a device has no end."""
    path = folder / name
    return path.is_relative_to(folder) and ".." not in path.parts and path.is_file()


def _checksum(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def unseal(folder: str | Path) -> None:
    """Removes the mark of a folder that is about to be written anew."""
    (Path(folder) / SEAL).unlink(missing_ok=True)


def read_seal(folder: str | Path, summed: bool = False) -> dict[str, Any] | None:
    """Returns the content of a checkpoint's mark; None if the checkpoint is not whole.

    Args:
        folder: The checkpoint's folder.
        summed: Whether the files' contents are looked at, not their sizes alone.

    Returns:
        ``step``, ``run``, ``files`` (name to size), and ``sums`` (name to CRC-32 of small files)
        in those of today.

    Raises:
        InputError: It is of a later format.
    """
    folder = Path(folder)
    try:
        told = read_object(folder / SEAL)
    except InputError:
        return None
    refuse_newer(told, str(folder), "checkpoint", FORMAT_VERSION)
    try:
        found = checked(told, KINDS, SEAL, "mark of a checkpoint")
        files, sums = found["files"], found.get("sums", {}) if summed else {}
        if not sums.keys() <= files.keys() or not all(_is_within(folder, name) for name in files):
            return None
        whole = all((folder / name).stat().st_size == size for name, size in files.items())
        whole = whole and all(_checksum(folder / name) == own for name, own in sums.items())
    except (OSError, ValueError, KeyError):
        return None
    good = whole and {"step", "run"} <= found.keys()
    return found if good and (folder / "trainer_state.json").is_file() else None


def newest_checkpoint(out: str | Path, run: str | None = None) -> Path | None:
    """Returns the whole checkpoint with the most steps in an output folder.

    Args:
        out: The output folder.
        run: Name of the run whose checkpoints count; None for any.

    Returns:
        The folder, or None. Those that are passed over are named in the log.

    Raises:
        InputError: One is of a later format.
    """
    numbered = []
    for path in Path(out).glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            numbered.append((int(match.group(1)), path))
    for _, path in sorted(numbered, reverse=True):
        found = read_seal(path, summed=True)
        if found is None:
            logger.warning("%s: ignored, the checkpoint is not whole", path)
        elif run is not None and found["run"] != run:
            logger.warning("%s: ignored, it belongs to another run than the journal", path)
        else:
            return path
    return None


def given_checkpoint(folder: str | Path) -> Path:
    """Returns a checkpoint that the user named.

    Raises:
        InputError: It is missing, not whole, or of a later format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise input_error("resume", "there is no such checkpoint", str(folder), "check the path")
    if read_seal(folder, summed=True) is None:
        raise input_error(
            "resume", "the checkpoint is not whole", str(folder), "name an earlier one, or none"
        )
    return folder
