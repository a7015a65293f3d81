"""Files that appear whole: written beside their place, moved there when complete.

A reader never sees half a file, what stood there before is kept until then, and two writers
of one file never share what they write. Permissions are those that any new file gets from
the umask and its folder; some libraries write private files whatever these say.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFT = ".staged-"
"""Start of the names of files that are being written."""


@contextmanager
def staged(path: Path, new: bool = False) -> Iterator[Path]:
    """Gives the place to write a file that is to appear at `path`, whole or not at all.

    Args:
        path: The file. Its ending is kept, since some writers go by it.
        new: Whether a file that is there already is left alone.

    Yields:
        A new, empty file in the same folder.

    Raises:
        FileExistsError: The file is there, and `new` is set.
        OSError: The folder cannot be written to.
    """
    place = path.with_name(f"{_LEFT}{secrets.token_hex(6)}{path.suffix}")
    try:
        # As any new file; a writer that puts a private one in its place is overruled.
        place.touch(exist_ok=False)
        mode = place.stat().st_mode
        yield place
        place.chmod(stat.S_IMODE(mode))
        if new:
            _link(place, path)
        else:
            os.replace(place, path)
    finally:
        place.unlink(missing_ok=True)


def _link(place: Path, path: Path) -> None:
    try:
        os.link(place, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links: what comes between the two lines is not noticed.
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(place, path)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """Gives a place to write files that are then moved into a folder one by one.

    Weights go last: a folder with weights has everything that belongs to them.

    Args:
        folder: The folder; it must be there. Files of the same names are replaced.

    Yields:
        An empty folder in it.

    Raises:
        OSError: The folder cannot be written to.
    """
    place = Path(tempfile.mkdtemp(prefix=_LEFT, dir=folder))
    try:
        yield place
        unveil(place)
        files = [path for path in place.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda p: (p.suffix == ".safetensors", p)):
            target = folder / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            os.replace(path, target)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def unveil(folder: Path) -> None:
    """Gives files of weights the permissions that a new file in their folder gets.

    safetensors (0.8) makes its files private, whatever the umask says.

    Args:
        folder: The folder, with those in it.
    """
    probe = folder / f"{_LEFT}{secrets.token_hex(6)}"
    probe.touch(exist_ok=False)
    try:
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()
    for path in folder.rglob("*.safetensors"):
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def is_left(path: Path) -> bool:
    """Whether a file is what a process was writing when it was killed."""
    return path.name.startswith(_LEFT)


def sweep(folder: Path) -> None:
    """Removes what a process that was killed while it wrote has left in a folder."""
    for path in folder.glob(f"{_LEFT}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
