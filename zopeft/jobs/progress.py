"""What a job reports while it runs; the job itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        stage: What is being done ("load", "tune", ...).
        step: Steps done in this stage.
        total: Steps of this stage; 0 where that is not known.
        loss: The loss, a mean over the last steps.
        score: The score that is optimised in place of it, likewise.
        projected_grad: The projected gradient of the step's first direction.
        lr: The step's learning rate.
        seconds: Seconds a step, a mean over the last ones.
        note: A line for the user.
    """

    stage: str
    step: int = 0
    total: int = 0
    loss: float | None = None
    score: float | None = None
    projected_grad: float | None = None
    lr: float | None = None
    seconds: float | None = None
    note: str = ""


Listener = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Takes a report and does nothing with it."""
