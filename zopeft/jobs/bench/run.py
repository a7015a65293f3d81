"""One run: an entry on a body with a learning rate and a budget of forward passes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zopeft.errors import RunError
from zopeft.jobs.bench.body import Body, batches
from zopeft.jobs.bench.entry import Entry
from zopeft.jobs.bench.making import make_method
from zopeft.recipe.schema import Recipe

POINTS = 100
"""Points that a run's curve is told with."""
BACKWARD = 2
"""What a backward pass costs, in forward passes."""
WORSE = 1.0
"""Nats above its first loss at which the end of a run counts as diverged."""
TAIL = 0.1
"""Share of a run, at its end, whose mean is its training loss."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        lr: The learning rate it ran with.
        lr_reason: Where it came from.
        steps: Steps made.
        forwards: Forward passes in all, those of the calibration included; a backward
            pass counts as `BACKWARD`.
        calibration: Forward passes of the calibration alone.
        losses: Training loss of each step (the mean over its probes).
        spent: Forward passes after each step.
        diverged: Whether the run broke off, or its end is not finite or far above its start.
        seconds: Time of the steps.
        peak_bytes: Most GPU memory used; None on a CPU, where it cannot be told by run.
    """

    lr: float
    lr_reason: str
    steps: int = 0
    forwards: int = 0
    calibration: int = 0
    losses: list[float] = field(default_factory=list)
    spent: list[int] = field(default_factory=list)
    diverged: bool = False
    seconds: float = 0.0
    peak_bytes: int | None = None

    @property
    def tail(self) -> float:
        """Mean loss of the run's last tenth; infinite where the run diverged."""
        return math.inf if self.diverged or not self.losses else self._end()

    def _end(self) -> float:
        """Returns the mean loss of the last tenth, of all runs that made a step."""
        last = self.losses[-max(1, round(TAIL * len(self.losses))) :]
        return sum(last) / len(last)

    @property
    def risen(self) -> bool:
        """Whether the end is `WORSE` than the first loss: such a run is no point of a curve.

        The first alone, since a run may break within its first tenth.
        """
        return bool(self.losses) and not self._end() - self.losses[0] <= WORSE

    def curve(self) -> list[list[float | None]]:
        """Returns [forward passes, mean loss] of up to `POINTS` equal parts of the run."""
        count = min(POINTS, len(self.losses))
        cuts = [round(k * len(self.losses) / count) for k in range(count + 1)] if count else []
        points: list[list[float | None]] = []
        for first, last in pairwise(cuts):
            part = [loss for loss in self.losses[first:last] if math.isfinite(loss)]
            mean = round(sum(part) / len(part), 6) if part else None
            points.append([self.spent[last - 1], mean])
        return points


class Counted:
    """A batch's loss as a closure that counts what it costs.

    Args:
        body: The run's model.
        gradients: Whether each call is followed by a backward pass.
    """

    def __init__(self, body: Body, gradients: bool) -> None:
        self.model, self.gradients = body.blocks.model, gradients
        self.forwards = 0
        self.batch: Mapping[str, Tensor] = {}

    def __call__(self) -> Tensor:
        """Returns the loss of the batch."""
        from zopeft.tasks import task_loss

        loss = task_loss(self.model, self.batch)
        self.forwards += 1
        if self.gradients:
            loss.backward()
            self.forwards += BACKWARD
        return loss


def propose(entry: Entry, body: Body, recipe: Recipe, seed: int) -> Outcome:
    """Returns the learning rate that an entry proposes for itself, and what finding it cost."""
    method = make_method(entry, body, "auto", recipe, seed)
    body.blocks.model.eval()
    loss = Counted(body, False)
    loss.batch = next(batches(body, recipe.training.batch_size, seed))
    return _proposed(method, loss)


def _proposed(method: Any, loss: Counted) -> Outcome:
    """Has a method settle its learning rate, if it can."""
    if hasattr(method, "calibrate"):
        method.calibrate(loss)
    lr = float(method.param_groups[0]["lr"])
    reason = str(getattr(method, "lr_reason", "the method's default"))
    return Outcome(lr, reason, forwards=loss.forwards, calibration=loss.forwards)


def _settled(method: Any, loss: Counted) -> Outcome:
    """Has a method settle where lr="auto" begins, which as a rule takes no forward pass."""
    if not hasattr(method, "settle"):
        return _proposed(method, loss)
    method.settle(loss)
    return Outcome(0.0, method.lr_reason, forwards=loss.forwards, calibration=loss.forwards)


def run(entry: Entry, body: Body, lr: float | str, recipe: Recipe, seed: int) -> Outcome:
    """Makes a run's steps until its budget is spent.

    Args:
        entry: Who runs.
        body: On what, at its start.
        lr: The learning rate, or "auto".
        recipe: The cell's recipe; ``bench.forwards`` is the budget.
        seed: Seed of batches and directions.

    Raises:
        InputError: The entry cannot be used on this body.
    """
    bench, size = recipe.bench, recipe.training.batch_size
    body.blocks.model.eval()
    method = make_method(entry, body, lr, recipe, seed)
    if hasattr(method, "probing"):
        method.probing.steps_planned = bench.forwards // method.forwards
    loss = Counted(body, bool(entry.order))
    feed = batches(body, size, seed)
    out = Outcome(0.0 if lr == "auto" else float(lr), "given")
    if lr == "auto":
        look = Counted(body, False)
        look.batch = next(batches(body, size, seed))
        try:
            out = _settled(method, look)
        except RunError:
            return Outcome(math.nan, "no finite loss", diverged=True)
    budget = bench.forwards - (out.calibration if bench.count_calibration else 0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    out.diverged = not _steps(method, loss, feed, budget, out)
    out.seconds = time.perf_counter() - started
    if lr == "auto" and getattr(method, "rate", None) is not None:
        out.lr = float(method.rate.began)
    if torch.cuda.is_available():
        out.peak_bytes = int(torch.cuda.max_memory_allocated())
    out.steps = len(out.losses)
    out.forwards = out.calibration + loss.forwards
    offset = out.calibration if bench.count_calibration else 0
    out.spent = [offset + count for count in out.spent]
    out.diverged = out.diverged or out.risen
    return out


def _steps(
    method: Any, loss: Counted, feed: Iterator[Mapping[str, Tensor]], budget: int, out: Outcome
) -> bool:
    """Makes steps while the budget has room for one as dear as the last; False: it broke off."""
    cost = 0
    while loss.forwards + cost <= budget:
        before = loss.forwards
        loss.batch = next(feed)
        try:
            if loss.gradients:
                method.zero_grad()
            value = float(method.step(loss).detach())
        except RunError:
            return False
        cost = loss.forwards - before
        out.losses.append(value)
        out.spent.append(loss.forwards)
        if loss.gradients and not math.isfinite(value):
            return False
    return True
