"""Following a run: what its listener hears of each step, and the lines of its metrics."""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from transformers import TrainerCallback

from zopeft.jobs.counted import CountedLoss
from zopeft.jobs.metrics import Metrics, numbers
from zopeft.jobs.progress import Listener, Progress
from zopeft.jobs.stopping import stopping
from zopeft.optim.record import StepRecord
from zopeft.probing.trial import Choice
from zopeft.training import ZOTrainer
from zopeft.training.checkpoints import read_seal

WINDOW = 20
"""Steps that the loss and the time on the terminal are means over."""


class Course:
    """A number a step, in eight bytes each: runs may have many steps.

    Steps that nothing is known of are NaN, and are left out by `items`.
    """

    def __init__(self) -> None:
        self._numbers = array("d")
        self._known = bytearray()

    def __setitem__(self, step: int, number: float) -> None:
        more = step + 1 - len(self._numbers)
        if more > 0:
            self._numbers.extend(repeat(math.nan, more))
            self._known.extend(bytes(more))
        self._numbers[step] = number
        self._known[step] = True

    def get(self, step: int, other: Any = math.nan) -> Any:
        """Returns the number of a step, or `other`."""
        return self._numbers[step] if 0 <= step < len(self) and self._known[step] else other

    def __len__(self) -> int:
        return len(self._numbers)

    def items(self) -> Iterator[tuple[int, float]]:
        """The steps that have a number, in order, and their numbers."""
        return ((n, x) for n, x in enumerate(self._numbers) if self._known[n])


class Follower(TrainerCallback):
    """Keeps each step's loss, tells the listener, and writes metrics.

    Args:
        loss: The loss of the steps that have no record.
        metrics: Takes the losses.
        listener: Called at the beginning and after each step.
        batches: Returns the line on how batches are laid out.
        every: Steps between two lines of metrics.
        score: What is optimised in place of a loss, whose negative the losses are; "" for none.
    """

    def __init__(
        self,
        loss: CountedLoss,
        metrics: Metrics,
        listener: Listener,
        batches: Callable[[Choice], str],
        every: int,
        score: str = "",
    ) -> None:
        self.trainer: ZOTrainer | None = None
        self.loss, self.metrics, self.listener = loss, metrics, listener
        self.batches, self.every, self.score = batches, every, score
        self.losses = Course()
        self.grads = Course()
        self.told = ""
        self.lr: float | None = None
        self._ticks: deque[float] = deque(maxlen=WINDOW + 1)
        self._started, self._before = 0.0, 0.0

    @property
    def method(self) -> Any:
        """The trainer's method."""
        return None if self.trainer is None else self.trainer.method

    @property
    def seconds(self) -> float:
        """Seconds of training until now, those of a run that is gone on with included."""
        return self._before + time.monotonic() - self._started

    def leave_out(self, seconds: float) -> None:
        """Counts time that was spent on something else than steps for none."""
        self._started += seconds
        self._ticks = deque((tick + seconds for tick in self._ticks), self._ticks.maxlen)

    def note(self, text: str) -> None:
        """Tells the listener something that concerns the run."""
        self.listener(Progress("tune", note=text))

    def settled(self) -> None:
        """Says how batches are laid out."""
        assert self.trainer is not None
        if self.trainer.args.order == 0:
            self.listener(Progress("begin", note=self.batches(self.trainer.layout)))
            if self.trainer.grid.told:
                self.listener(Progress("begin", note=self.trainer.grid.told))
            if self.trainer.differing:
                self.listener(Progress("begin", note=self.trainer.differing.line))
        self.loss.calls = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves out the passes of the beginning, of which the method counts its own."""
        self.loss.calls = 0
        assert self.trainer is not None
        self.metrics.keep(kept_steps(self.trainer))
        journal = self.trainer.recording.journal
        if state.global_step and journal is not None:
            first = state.global_step - max(self.every, WINDOW)
            for record in journal.records(max(0, first)):
                if record.step >= state.global_step:
                    break
                self._take(record.step + 1, record)
        self._before, self._started = self.metrics.seconds, time.monotonic()
        self._ticks.append(self._started)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on an interrupt waits for the step's end."""
        stopping.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of the rate of the step that is about to be made."""
        if self.trainer is not None:
            self.lr = float(self.method.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of the step that has just been made."""
        method, step = self.method, state.global_step
        record = getattr(method, "last_record", None)
        if record is not None:
            self._take(step, record)
        else:
            loss = self.loss.last
            self.losses[step] = math.nan if loss is None else float(loss)
        note = getattr(method, "unread", "")
        note, self.told = ("" if note == self.told else note), note
        self._ticks.append(time.monotonic())
        self._log(step, args.max_steps)
        self.listener(
            Progress(
                stage="tune",
                step=step,
                total=args.max_steps,
                loss=None if self.score else self._mean(self.losses, step, WINDOW),
                score=_negative(self._mean(self.losses, step, WINDOW)) if self.score else None,
                projected_grad=self.grads.get(step, None),
                lr=self.lr,
                seconds=(self._ticks[-1] - self._ticks[0]) / (len(self._ticks) - 1),
                note=note,
            )
        )
        stopping.end()

    def _take(self, step: int, record: StepRecord) -> None:
        """Keeps what a step's record says."""
        grads = record.projected_grads
        self.losses[step] = record.seen
        self.grads[step] = math.sqrt(sum(g * g for g in grads) / max(1, len(grads)))

    def _log(self, step: int, most: int) -> None:
        """Writes a line of metrics where one is due."""
        if step % self.every and step != most:
            return
        width = step % self.every or self.every
        mean = self._mean(self.losses, step, width)
        name, shown = ("score", _negative(mean)) if self.score else ("loss", mean)
        values = {name: shown, "lr": self.lr}
        if self.grads:
            values["grad"] = self._mean(self.grads, step, width, 2.0)
        if self.metrics.add(step, values, self.seconds):
            self.report({name: shown, "learning_rate": self.lr})

    def report(self, values: dict[str, Any]) -> None:
        """Reports numbers to the run's tracker, where it has one."""
        if self.trainer is not None and self.trainer.args.report_to:
            self.trainer.log(numbers(values))

    @staticmethod
    def _mean(found: Course, step: int, width: int, power: float = 1.0) -> float | None:
        """Returns the mean (of that power) over the last steps that have a finite number."""
        last = [found.get(n) for n in range(step - width + 1, step + 1)]
        finite = [number**power for number in last if math.isfinite(number)]
        return (sum(finite) / len(finite)) ** (1.0 / power) if finite else None


def _negative(number: float | None) -> float | None:
    return None if number is None else 0.0 - number


def kept_steps(trainer: ZOTrainer) -> int:
    """Returns the steps that a run which is gone on with has made before."""
    journal, resumed = trainer.recording.journal, trainer.resumed
    if resumed is None:
        return 0
    found = 0 if journal is None else journal.next_step
    sealed = None if resumed.checkpoint is None else read_seal(resumed.checkpoint)
    return max(found, int(sealed["step"]) if sealed else 0)
