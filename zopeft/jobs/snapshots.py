"""Snapshots: when a run that has a journal saves a checkpoint by itself, so that it resumes soon.

Going on from the journal alone makes all steps again, without their forward passes; from a
checkpoint, those after it. So a run has one when `FIRST` steps have been made since the last one
and these are a `SHARE`-th of all steps, or more: of 200,000 steps, at most 3,125 are made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

FIRST = 1000
"""Steps between two snapshots, at least."""
SHARE = 64
"""Of the steps that have been made, this part is made again at most."""
ROOM = 3
"""How many times the size of what is saved must be free; a new one stands beside the last."""


def due(step: int, last: int) -> bool:
    """Whether a snapshot is due.

    Args:
        step: Steps made.
        last: Those of the last snapshot; 0 without one.
    """
    return step - last >= max(FIRST, step // SHARE)


class Snapshots(TrainerCallback):
    """Asks a trainer for a snapshot where one is due.

    One that the disk has no room for is left out, which is told once.

    Args:
        folder: The run's folder.
        size: Returns the bytes that a snapshot takes.
        tell: Called with a note.
    """

    def __init__(self, folder: Path, size: Callable[[], int], tell: Callable[[str], None]) -> None:
        self.folder, self.size, self.tell = folder, size, tell
        self.last = 0
        self._told = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on from the snapshot that the run goes on from."""
        self.last = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a snapshot; the end of a run needs none."""
        step = state.global_step
        if step >= state.max_steps or not due(step, self.last):
            return
        self.last = step
        # Processes that share a run must all do the same, whatever each of them sees.
        shared = args.world_size > 1
        if shared or shutil.disk_usage(self.folder).free > ROOM * self.size():
            control.should_save = True
        elif not self._told:
            self._told = True
            self.tell("no room on the disk for a snapshot: the run can be resumed from its journal")


def size_of(model: Any, method: Any) -> int:
    """Returns the bytes of a snapshot: what is saved of a model, and 8 for each trained number.

    Args:
        model: The model, or an adapter on it.
        method: The method, of any order.
    """
    whole = not hasattr(model, "peft_config")
    saved = [one for one in model.parameters() if whole or one.requires_grad]
    trained = [one for group in method.param_groups for one in group["params"]]
    weights = sum(one.numel() * one.element_size() for one in saved)
    return int(weights + 8 * sum(one.numel() for one in trained))
