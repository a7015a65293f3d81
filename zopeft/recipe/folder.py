"""The folder of a run: claimed before anything is written, cleared only when all is ready.

``run.json`` holds one JSON line: the run's state and, at its end, its summary.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zopeft.errors import InputError, input_error, run_error

RECORD = "run.json"
RUNS = Path("runs")


class Folder:
    """Where a run's files go.

    Args:
        out: The user's choice; None takes ``runs/STEM-N`` with the first free N.
        stem: Start of the default name.
        overwrite: Whether an earlier result may be replaced.
        resume: Whether the run in the folder is continued.
        inputs: Folders that the run reads, which it must not replace.

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
    ) -> None:
        self.path = _free(stem) if out is None else Path(out).expanduser()
        self.resume = resume
        self._clear = False
        self._state: dict[str, Any] = {}
        if self.path.exists() and not self.path.is_dir():
            raise input_error("--out", "is a file", str(self.path), "give a folder")
        if resume:
            stored_recipe(out)
        elif self.path.is_dir() and any(self.path.iterdir()):
            self._may_replace(overwrite, inputs)
        _check_writable(self.path)

    def _may_replace(self, overwrite: bool, inputs: Sequence[str | Path | None]) -> None:
        """Checks that the files in the folder may be replaced.

        Raises:
            InputError: They may not.
        """
        where = str(self.path)
        if not overwrite:
            raise input_error(
                "--out",
                "the folder holds files",
                where,
                "choose another folder, or --overwrite (--resume continues a run)",
            )
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

    def begin(self, state: Mapping[str, Any]) -> None:
        """Makes the folder, or clears it, and writes the run's first record.

        Args:
            state: What is known of the run: job, resolved recipe, versions, seeds.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._clear:
                for child in self.path.iterdir():
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
        except OSError as error:
            raise run_error("--out", f"cannot be written ({error})") from None
        self.write({**state, "status": "running"})

    def write(self, state: Mapping[str, Any]) -> None:
        """Adds to the run's record; the file is replaced whole."""
        self._state = {**self._state, **state}
        line = json.dumps(self._state, default=str)
        staged = self.path / (RECORD + ".new")
        staged.write_text(line + "\n", encoding="utf-8")
        os.replace(staged, self.path / RECORD)


def stored_record(out: str | Path | None) -> dict[str, Any]:
    """Returns the record of the run in a folder.

    Raises:
        InputError: There is no run.
    """
    if out is None:
        raise input_error("--resume", "needs the run's folder", do="give it with --out DIR")
    file = Path(out).expanduser() / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_run(out) from None
    except (OSError, ValueError) as error:
        raise input_error(str(file), f"cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise input_error(str(file), "is not the record of a run")
    return record


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


def _free(stem: str) -> Path:
    """Returns the first ``runs/STEM-N`` that does not exist."""
    number = 1
    while (RUNS / f"{stem}-{number}").exists():
        number += 1
    return RUNS / f"{stem}-{number}"


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
