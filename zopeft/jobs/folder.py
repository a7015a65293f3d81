"""The folder of a run: claimed before anything is loaded, cleared only when all is ready.

``run.json`` holds one JSON line: the run's state and, at its end, its summary.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from zopeft.errors import InputError, input_error, run_error
from zopeft.jobs.claim import CLAIM, Claim, holds_files, unwritable
from zopeft.jobs.kept import Kept, again
from zopeft.reading import read_object, to_json
from zopeft.staging import staged, sweep

RECORD = "run.json"
RUNS = Path("runs")
REPLACED = ".replaced"
"""Where an old result is until the run that replaces it makes its first step."""
BROKEN_OFF = ("interrupted", "failed")


class Folder:
    """Where a run's files go; used as a context, at whose end other runs may have it.

    From the start no other run can take the same folder. A folder that has been made for a
    run that never began is taken away. When the run breaks off, its record says so, and
    an interrupt is told (as a note of the exception) what is kept and how to go on.

    Of the processes of a distributed run, which share it, the first alone claims and writes.

    Args:
        out: The user's choice; None takes ``runs/STEM-N`` with the first free N.
        stem: Start of the default name.
        overwrite: Whether an earlier result may be replaced.
        resume: Whether the run in the folder is continued.
        inputs: Folders that the run reads, which it must not replace.
        kept: What of the job can be gone on from when it breaks off, if anything.

    Raises:
        InputError: The folder cannot be used; nothing has been changed on disk.
    """

    def __init__(
        self,
        out: str | Path | None,
        stem: str,
        overwrite: bool = False,
        resume: bool = False,
        inputs: Sequence[str | Path | None] = (),
        kept: Kept | None = None,
    ) -> None:
        self.resume = resume
        self._kept = kept
        self._leads = os.environ.get("RANK", "0") == "0"
        self._clear = self._begun = False
        self._state: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        if resume:
            stored_recipe(out)
        self.path, self._claim = self._taken(out, stem)
        try:
            if resume:
                self._before = stored_record(out)
            elif self._leads and holds_files(self.path):
                self._may_replace(overwrite, inputs)
        except BaseException:
            self.close()
            raise

    def _taken(self, out: str | Path | None, stem: str) -> tuple[Path, Claim | None]:
        """Claims a folder."""
        if out is None and os.environ.get("WORLD_SIZE", "1") != "1":
            raise input_error("--out", "is needed where several processes share a run")
        path = RUNS if out is None else Path(out).expanduser()
        if path.exists() and not path.is_dir():
            raise input_error("--out", "is a file", str(path), "give a folder")
        _check_writable(path)
        try:
            if out is None:
                return _free(stem)
            return path, Claim(path) if self._leads else None
        except OSError as error:
            raise unwritable(path, error) from None

    def _may_replace(self, overwrite: bool, inputs: Sequence[str | Path | None]) -> None:
        """Checks that the files in the folder may be replaced.

        Raises:
            InputError: They may not.
        """
        where = str(self.path)
        if not overwrite:
            raise self._occupied()
        if not (self.path / RECORD).is_file():
            raise input_error(
                "--overwrite", f"no {RECORD} in it, so not a result of zopeft", where, "empty it"
            )
        own = self.path.resolve()
        for source in inputs:
            if source is None or not Path(source).expanduser().exists():
                continue
            path = Path(source).expanduser().resolve()
            if path == own or own in path.parents or path in own.parents:
                raise input_error(
                    "--overwrite", f"{source} is read by this run", where, "choose another --out"
                )
        self._clear = True

    def _occupied(self) -> InputError:
        """Returns what is wrong with a folder that holds files."""
        where, do = str(self.path), "choose another folder, or --overwrite"
        try:
            record = stored_record(self.path)
        except InputError:
            record = {}
        end, job = BROKEN.get(str(record.get("status"))), str(record.get("job"))
        if end is None:
            do += " (--resume continues a run)"
            return input_error("--out", "the folder holds files", where, do)
        what = f"the folder holds a run of zopeft {job} that {end}"
        return input_error("--out", what, where, f"{again(job, self.path)}; or {do}")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self._leads

    def begin(self, state: Mapping[str, Any]) -> None:
        """Clears the folder, where it is to be, and writes the run's first record.

        Args:
            state: What is known of the run: job, resolved recipe, versions, seeds.
        """
        self._begun, self._state = True, dict(state)
        try:
            if self._leads:
                sweep(self.path)
            if self._clear and self._leads:
                self._put_aside()
            self._begun = True
            self._state = {**state, "status": "running"}
            self._put(self._state)
        except OSError as error:
            if self._clear and self._leads:
                with suppress(OSError):
                    _move_all(self.path / REPLACED, self.path)
                    (self.path / REPLACED).rmdir()
            raise run_error("--out", f"cannot be written ({error})") from None

    def _put_aside(self) -> None:
        """Moves an old result out of the way, into a folder of its own.

        The record stays: without it, what is left could not be overwritten again.
        """
        aside = self.path / REPLACED
        aside.mkdir(exist_ok=True)
        for child in list(self.path.iterdir()):
            if child.name in (CLAIM, RECORD, REPLACED):
                continue
            if (aside / child.name).exists():
                # What an earlier try has left; the old result is there already.
                remove = shutil.rmtree if _is_own_folder(child) else Path.unlink
                remove(child)
            else:
                os.rename(child, aside / child.name)

    def write(self, state: Mapping[str, Any]) -> None:
        """Adds to the run's record, whose file is replaced whole; an old result goes now."""
        if self.resume and not self._begun and self._leads:
            sweep(self.path)
        self._begun = True
        self._state = {**self._state, **state}
        self._put(self._state)
        if self._leads and state.get("status") not in BROKEN_OFF:
            shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def _put(self, record: Mapping[str, Any]) -> None:
        if self._leads:
            with staged(self.path / RECORD) as place:
                place.write_text(to_json(record) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Gives the folder back."""
        if self._claim is not None:
            self._claim.release()

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._broken_off(error)
        finally:
            self.close()

    def _broken_off(self, error: BaseException) -> None:
        """Writes in the record how the run ended, and tells an interrupt what is kept."""
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            error.add_note(self._told())
        if not self._begun:
            return
        # A disk that is full is no reason to hide the error itself.
        with suppress(OSError):
            if self._before and isinstance(error, InputError):
                # Nothing has been done to the run that was to be continued.
                self._put(self._before)
            else:
                self.write({"status": "interrupted" if stopped else "failed"})

    def _told(self) -> str:
        """Returns what is kept and how to go on."""
        if not self._begun:
            return "nothing was changed on disk" if self.resume else "nothing was written"
        held = f"{self.path} holds no result" if self._kept is None else self._kept(self.path)
        return f"{held}; {again(str(self._state.get('job')), self.path)}"


BROKEN = {"running": "was killed", "interrupted": "was interrupted", "failed": "failed"}
"""What becomes of a run that does not come to its end, by what its record says then."""


def _move_all(source: Path, target: Path) -> None:
    """Moves what is in a folder into another."""
    for child in list(source.iterdir()):
        os.rename(child, target / child.name)


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def stored_record(out: str | Path | None) -> dict[str, Any]:
    """Returns the record of the run in a folder.

    Raises:
        InputError: There is no run.
    """
    if out is None:
        raise input_error("--resume", "needs the run's folder", do="give it with --out DIR")
    file = Path(out).expanduser() / RECORD
    if not file.exists():
        raise _no_run(out)
    return read_object(file, "start a new run in another --out")


def stored_recipe(out: str | Path | None) -> dict[str, Any]:
    """Returns the recipe of the run in a folder, as it was resolved.

    Raises:
        InputError: There is no run.
    """
    recipe = stored_record(out).get("recipe")
    if not isinstance(recipe, dict):
        raise _no_run(str(out))
    return recipe


def _no_run(out: str | Path) -> InputError:
    return input_error("--resume", "no run in this folder", str(out), "run without --resume")


def _free(stem: str) -> tuple[Path, Claim]:
    """Makes the first ``runs/STEM-N`` that does not exist, and claims it."""
    for number in count(1):
        path = RUNS / f"{stem}-{number}"
        if path.exists():
            continue
        try:
            return path, Claim(path, new=True)
        except FileExistsError:
            # Another run was faster.
            continue
    raise AssertionError


def _check_writable(path: Path) -> None:
    """Checks that a folder can be made.

    Raises:
        InputError: It cannot.
    """
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise input_error("--out", f"{parent} cannot be written to", str(path), "choose another")
