"""Going on with a run: whether it can be, and what may have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.folder import RECORD, Folder
from zopeft.jobs.progress import Listener, Progress
from zopeft.recipe.schema import Recipe

FREE = (
    *("steps", "log_steps", "save_steps", "eval_batch_size"),
    *("eval_steps", "keep_best", "best_by", "patience", "report_to"),
    *("fingerprint_steps", "ddp_timeout"),
)
"""Settings of training that may change when a run goes on."""


def is_begun(out: str | None) -> bool:
    """Whether there is a run in a folder that ``--resume auto`` goes on with.

    Args:
        out: The folder.

    Raises:
        InputError: No folder was given.
    """
    if out is None:
        raise input_error("--resume auto", "needs the run's folder", do="give it with --out DIR")
    return (Path(out).expanduser() / RECORD).is_file()


def goes_on(folder: Folder, earlier: dict[str, Any], listener: Listener) -> bool:
    """Returns whether there are steps to go on from; without any, the run starts again.

    Raises:
        InputError: There are none although the run has come to its end.
    """
    from zopeft.training.checkpoints import newest_checkpoint

    path = folder.path
    if (path / "journal.bin").exists() or newest_checkpoint(path) is not None:
        return True
    if earlier.get("status") in ("done", "diverged"):
        raise input_error(
            "--resume",
            "the run is done, and has kept neither a journal nor a checkpoint to go on from",
            str(path),
            "start a new run in another --out",
        )
    note = "no step of this run has been kept: it starts from the beginning"
    listener(Progress("load", note=note))
    return False


def check_same(recipe: Recipe, earlier: dict[str, Any]) -> None:
    """Refuses to resume with other settings; only the number of steps may change.

    Raises:
        InputError: A setting differs from the run's.
    """
    free = {f"training.{name}" for name in FREE}
    # A run of an earlier version lacks what has been added since, and had the default.
    before = {**_flat(Recipe().to_dict()), **_flat(earlier["recipe"])}
    now = _flat(recipe.to_dict())
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now} - {*free, "about"})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise input_error(
            "--resume",
            "other settings than the run's",
            "; ".join(changed),
            "leave them out, or start a new run in another --out",
        )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns a nested recipe with dotted keys."""
    return {
        f"{section}.{key}": value
        for section, values in recipe.items()
        if isinstance(values, dict)
        for key, value in values.items()
    }
