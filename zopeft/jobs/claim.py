"""Claims: a folder belongs to one running command at a time.

A claim is a file in the folder that names the process and is locked by it. The system gives
the lock back whatever becomes of the process, so that the file of a dead one is no claim.
Where the file system has no locks, it is one as long as that process lives; one of another
host is then taken to live.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error
from zopeft.reading import checked, parse_json
from zopeft.staging import is_left

CLAIM = ".zopeft-claim"
MADE = "made"
HOLDER = {"host": "text", "pid": "count", "born": "text?", "since": "text"}
"""What a claim tells of its process, and the kinds (`zopeft.reading.fits`)."""
MOST_PROCESSES = 1 << 31
_LONGEST = 1 << 16
_TRIES = 100
_SETTLED = 10.0
"""Seconds after which a claim that names nobody is not just being written."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class Holder:
    """The process that a claim names.

    Attributes:
        host: Its machine.
        pid: Its number there.
        born: When the system started it, in a unit of the system's own; None if not known.
        since: When it took the claim, for people.
    """

    host: str
    pid: int
    born: str | None
    since: str

    @classmethod
    def this(cls) -> Holder:
        """Returns the process that runs."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()), now)

    @property
    def lives(self) -> bool:
        """Whether it may still run."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
        return self.born is None or _born(self.pid) in (None, self.born)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Claim:
    """A folder that this process has for itself until `release`.

    The folder is made where it is missing, and taken away again at `release` if nothing has
    been put into it. One that made the folder but did not get it leaves that to the one that
    has it: both write into the claim's file, a JSON object a line, and nobody cuts it.

    Args:
        folder: The folder.
        new: Whether it must not be there yet.

    Raises:
        FileExistsError: It is there, and `new` is set.
        InputError: Another process has it, or its name is no UTF-8, which what is written in it
            could not name.
        OSError: It cannot be written to.
    """

    def __init__(self, folder: Path, new: bool = False) -> None:
        try:
            str(folder).encode()
        except UnicodeEncodeError:
            do = "choose another name"
            raise input_error("--out", "the folder's name is no UTF-8", str(folder), do) from None
        self.path = folder / CLAIM
        self._made = _make(folder, new)
        try:
            self._file = self._take(folder)
        except BaseException:
            self._unmake()
            raise

    def _take(self, folder: Path) -> int:
        for _ in range(_TRIES):
            try:
                file, new = _opened(self.path)
            except FileNotFoundError:
                # The process that had it before has just taken its empty folder away.
                self._made = self._made or _make(folder, False)
                continue
            try:
                if _owned(file, new, self.path):
                    _add(file, asdict(Holder.this()))
                    return file
            except BaseException:
                # Written before they are tried here: whoever is last takes them away.
                if self._made:
                    _add(file, {MADE: [str(path.absolute()) for path in self._made]})
                os.close(file)
                raise
            os.close(file)
        raise input_error("--out", "cannot be claimed", str(folder), "choose another folder")

    def release(self) -> None:
        """Gives the folder back; may be called twice."""
        if self._file < 0:
            return
        self.path.unlink(missing_ok=True)
        # Read after that: what others write from now on, they take away themselves.
        self._made += _told_of(self._file, self.path.parent)
        os.close(self._file)
        self._file = -1
        self._unmake()

    def _unmake(self) -> None:
        for folder in sorted(self._made, key=lambda path: len(path.absolute().parts))[::-1]:
            with suppress(OSError):
                folder.rmdir()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holds_files(folder: Path) -> bool:
    """Whether there is anything in a folder besides the claim, and what was never finished."""
    return any(child.name != CLAIM and not is_left(child) for child in folder.iterdir())


def unwritable(path: Path, error: OSError) -> InputError:
    """Returns what the user is told of a folder that cannot be made or claimed."""
    reason = error.strerror or str(error)
    return input_error("--out", f"cannot be written to ({reason})", str(path), "choose another")


def _make(folder: Path, new: bool) -> list[Path]:
    """Makes a folder with those above it, and returns the ones that were not there."""
    made = []
    for path in reversed([folder, *folder.parents]):
        try:
            path.mkdir()
            made.append(path)
        except FileExistsError:
            if new and path == folder:
                raise
        except OSError:
            # A root that cannot be written to is no fault where it is there.
            if not path.is_dir():
                raise
    return made


def _opened(path: Path) -> tuple[int, bool]:
    """Opens a claim, and says whether it was not there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND
    try:
        return os.open(path, flags | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(path, flags, 0o666), False


def _owned(file: int, new: bool, path: Path) -> bool:
    """Whether an open claim is this process's; False if it is to be opened again.

    Raises:
        InputError: It is another's.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _taken(path, _named(file)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return new or _cleared_away(file, path)
    try:
        # The one that had it before may have removed the file that has been opened here.
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _cleared_away(file: int, path: Path) -> bool:
    """Removes a dead process's claim where there are no locks; always False.

    Raises:
        InputError: Its process lives, or cannot be told dead.
    """
    holder = _named(file)
    fresh = time.time() - os.fstat(file).st_mtime < _SETTLED
    if fresh if holder is None else holder.lives:
        raise _taken(path, holder)
    aside = path.with_name(f"{CLAIM}-{secrets.token_hex(6)}")
    try:
        os.rename(path, aside)
        if os.path.samestat(os.fstat(file), aside.stat()):
            aside.unlink()
        else:
            # Another process was faster, and this is its new claim.
            os.rename(aside, path)
    except FileNotFoundError:
        pass
    return False


def _add(file: int, line: dict[str, Any]) -> None:
    """Adds a line to an open claim, in one write."""
    os.write(file, f"\n{json.dumps(line)}".encode())


def _lines(file: int) -> list[dict[str, Any]]:
    """Returns the lines of an open claim that can be read."""
    found = []
    try:
        text = os.pread(file, _LONGEST, 0).decode(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        with suppress(InputError):
            found.append(parse_json(line, CLAIM))
    return [line for line in found if isinstance(line, dict)]


def _named(file: int) -> Holder | None:
    """Returns the last process that an open claim names."""
    for line in reversed(_lines(file)):
        with suppress(InputError):
            told = checked(line, HOLDER, CLAIM, "holder")
            if told.keys() == HOLDER.keys() and told["pid"] < MOST_PROCESSES:
                return Holder(**told)
    return None


def _told_of(file: int, folder: Path) -> list[Path]:
    """Returns the folders that others made on their way to a claim: it, and those above it."""
    folder = folder.resolve()
    possible = {folder, *folder.parents}
    every = [line.get(MADE) for line in _lines(file)]
    named = [path for paths in every if isinstance(paths, list) for path in paths]
    found = []
    for path in named:
        with suppress(TypeError, ValueError, OSError):
            found += [Path(path)] if Path(path).resolve() in possible else []
    return found


def _taken(path: Path, holder: Holder | None) -> InputError:
    told = "another run" if holder is None else f"another run ({holder})"
    do = "wait for its end, or choose another folder"
    return input_error("--out", f"the folder is in use by {told}", str(path.parent), do)


def _born(pid: int) -> str | None:
    """Returns when a process was started, as Linux tells it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # After the name, which may hold spaces: the twentieth of what follows (proc(5), 22).
    return text.rpartition(")")[2].split()[19]
