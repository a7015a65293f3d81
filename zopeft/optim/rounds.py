"""The rounds of a step: its plan's probes, run for every micro-batch, and their mean losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from zopeft.engine.direction import Probe
from zopeft.errors import InputError, input_error
from zopeft.optim.executor import Executor, losses_of
from zopeft.optim.looks import Aside, counts
from zopeft.optim.signal import NOTE as SIGNAL
from zopeft.optim.signal import Examples
from zopeft.optim.step import Plan, Step
from zopeft.optim.thrifty import ThriftyRate
from zopeft.optim.writes import Write
from zopeft.probing.closure import Closure
from zopeft.probing.examples import listening

SCORES = "scores"
"""The note of a step whose losses are not what its probes were scored with, fp32 [P]."""


@dataclass(frozen=True)
class Sofar:
    """The mean losses of a step's probes so far; see `zopeft.optim.rate.Seen`."""

    losses: tuple[float, ...]
    centre: float | None
    mirror: float | None
    eps: float


class Rounds:
    """A step's plan under way.

    The first round runs as each micro-batch comes; a plan that asks again has its further
    rounds run over all micro-batches when the step is applied.

    Args:
        step: The step.
        plan: Its plan, not yet begun.
        executor: What finds losses.

    Attributes:
        asked: The mean loss of every probe so far, in the order that they were asked for.
        forward_passes: Forward passes so far.
    """

    def __init__(self, step: Step, plan: Plan, executor: Executor) -> None:
        self.step, self.plan, self.executor = step, plan, executor
        self.asked: list[float] = []
        self.forward_passes = 0
        self._closures: list[Closure] = []
        self._sums: list[float] = []
        self.probes: list[Probe] = []
        self._examples = Examples(step.method.estimator, step.eps) if listens(step) else None
        self._ask(next(plan))

    def _ask(self, probes: Sequence[Probe]) -> None:
        good = isinstance(probes, list | tuple) and len(probes) > 0
        if not good or not all(isinstance(p, tuple) and len(p) == 2 for p in probes):
            raise self._wrong("must yield lists of probes", probes, "write u.at(eps)")
        self.probes = list(probes)
        self._sums = [0.0] * len(self.probes)

    def add(self, closure: Closure) -> Tensor:
        """Runs the first round for a micro-batch; returns its losses, fp32 [P]."""
        self._closures.append(closure)
        return self._run(closure)

    def _wrong(self, what: str, got: Any, do: str) -> InputError:
        """Returns the error of a plan that breaks the contract of plans."""
        name = type(self.step.method).__name__
        return input_error(f"{name}.plan", what, repr(got)[:80], do)

    def _writes(self, stop: StopIteration) -> Sequence[Write]:
        found = stop.value
        if not isinstance(found, list | tuple):
            raise self._wrong("must return a list of writes", found, "return [step.descend(u, g)]")
        for write in found:
            if not isinstance(write, Write):
                raise self._wrong("returned what is no write", write, "see zopeft.optim.step")
        return tuple(found)

    def losses(self) -> tuple[float, ...]:
        """Returns the mean losses of the probes under way, without those set aside."""
        count = len(self._closures)
        pairs = zip(self.probes, self._sums, strict=True)
        return tuple(total / count for probe, total in pairs if counts(probe))

    @property
    def looks(self) -> bool:
        """Whether the first round takes the losses that tell a bend."""
        if self.probes[0][1] != 0.0:
            return False
        estimator = self.step.method.estimator
        return not estimator.one_sided or any(isinstance(p, Aside) for p in self.probes[1:])

    def seen(self) -> Sofar:
        """Returns the mean losses of the first round so far."""
        mirror = None
        if self.step.taken.mirrored and self._closures:
            mirror = self._sums[-1] / len(self._closures)
        return Sofar(self.losses(), self.centre(), mirror, self.step.eps)

    def centre(self) -> float | None:
        """Returns the mean loss at the weights where the first probe is there; else None."""
        if self.probes[0][1] != 0.0 or not self._closures:
            return None
        return self._sums[0] / len(self._closures)

    def _run(self, closure: Closure) -> Tensor:
        # A plan that asks again does so about the directions that it has already shown.
        examples = None if self.asked else self._examples
        # All processes of a step listen alike, for some of them tell each other what they hear.
        with listening(examples is not None) as heard:
            losses, passes = losses_of(self.executor, self.probes, closure)
        self.forward_passes += passes
        shape = getattr(closure, "shaped", None)
        shaped = None if shape is None else shape(losses)
        if shaped is not None:
            self._note(losses)
            losses = shaped
        if examples is not None:
            told = heard.of(len(self.probes)) if shaped is None else None
            examples.add(told, self.step.taken)
        self._sums = [a + b for a, b in zip(self._sums, losses.tolist(), strict=True)]
        return losses

    def _note(self, losses: Tensor) -> None:
        """Notes the scores of the first round, whose losses are about to be turned into others."""
        count = len(self._closures)
        if not self.asked:
            seen = self.step.notes.get(SCORES, np.zeros(len(losses), np.float32)) * (count - 1)
            own = -losses.detach().float().cpu().numpy()
            self.step.notes[SCORES] = ((seen + own) / count).astype(np.float32)

    def finish(self) -> Sequence[Write] | None:
        """Runs what is left of the plan.

        Returns:
            What to write; None where a loss was not finite.
        """
        count = len(self._closures)
        while True:
            means = [total / count for total in self._sums]
            self.asked += means
            pairs = zip(self.probes, means, strict=True)
            # What is set aside is no part of the update.
            if not all(math.isfinite(m) for probe, m in pairs if not isinstance(probe, Aside)):
                self.plan.close()
                return None
            if self._examples is not None:
                self._tell(self._examples.signal())
                self._examples = None
            try:
                self._ask(self.plan.send(means))
            except StopIteration as stop:
                return self._writes(stop)
            for closure in self._closures:
                self._run(closure)

    def _tell(self, signal: float) -> None:
        """Notes how far the examples agree, where that is known."""
        found = self.executor.agreed(np.array([signal], dtype=np.float32))
        if np.isfinite(found).all():
            self.step.notes[SIGNAL] = found

    def feed(self, losses: Sequence[float]) -> Sequence[Write]:
        """Sends a plan the recorded losses, in the order that they were asked for.

        Raises:
            ValueError: The plan asks for more or fewer than there are.
        """
        left = list(losses)
        while True:
            if len(left) < len(self.probes):
                raise ValueError(f"{len(losses)} losses where the step asks for more")
            own, left = left[: len(self.probes)], left[len(self.probes) :]
            self.asked += own
            try:
                self._ask(self.plan.send(own))
            except StopIteration as stop:
                if left:
                    raise ValueError(
                        f"{len(losses)} losses where the step asks for fewer"
                    ) from None
                return self._writes(stop)


def listens(step: Step) -> bool:
    """Whether a step's learning rate asks how far the examples of its batches agree."""
    rate = step.method.rate
    return step.record is None and isinstance(rate, ThriftyRate) and rate.listens


def begun(step: Step) -> Rounds:
    """Returns the rounds of a step of its method's plan, of which none has run."""
    method = step.method
    method.kept.begin(step.blocks)
    return Rounds(step, method.plan(step), method.executor)
