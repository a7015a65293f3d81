"""The best weights of a run so far, kept in a file beside its journal."""

from __future__ import annotations

import re
from pathlib import Path

from zopeft.blocks import Blocks
from zopeft.journal.start import load_start, save_start

_NAME = re.compile(r"best-(\d+)\.safetensors")


def best_step(folder: Path) -> int | None:
    """Returns the step whose weights are kept in a run's folder; None where none are."""
    return max((step for step, _ in _kept(folder)), default=None)


def keep_best(blocks: Blocks, folder: Path, step: int) -> None:
    """Keeps the blocks' weights, in place of what was kept before.

    Args:
        blocks: The blocks, [N].
        folder: The run's folder.
        step: Steps that they have made.
    """
    save_start(blocks, folder / f"best-{step}.safetensors")
    for other, path in _kept(folder):
        if other != step:
            path.unlink(missing_ok=True)


def load_best(blocks: Blocks, folder: Path) -> int | None:
    """Gives the blocks the weights that are kept; returns their step, None where none are."""
    step = best_step(folder)
    if step is not None:
        load_start(blocks, folder / f"best-{step}.safetensors")
    return step


def clear_best(folder: Path) -> None:
    """Drops what is kept."""
    for _, path in _kept(folder):
        path.unlink(missing_ok=True)


def _kept(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("best-*.safetensors")]
    return [(int(match.group(1)), path) for match, path in found if match]
