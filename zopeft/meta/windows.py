"""Windows: what the blocks' statistics were while a run stood at a certain loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.engine import Engine
from zopeft.finetuner import Reading
from zopeft.finetuner.course import share
from zopeft.meta.statistics import BlockStatistics

LOOK = 2
"""Steps at the start of a run that give its first loss and energy: two, since the weights
have not moved before the second."""


@dataclass(frozen=True)
class Window:
    """A stretch of a run.

    Attributes:
        task: The run's task.
        run: The run's number, from 0.
        loss: Mean loss.
        signal: S, float64 [N].
        energy: E, float64 [N].
        curvature: h, float64 [N].
        mean: Mean of each block's values at its end, float32 [N].
        variance: Their unbiased variance, float32 [N].
    """

    task: str
    run: int
    loss: float
    signal: Tensor
    energy: Tensor
    curvature: Tensor
    mean: Tensor
    variance: Tensor


class WindowLog:
    """Cuts the runs of a meta-training into windows.

    Keeps six numbers a block and window; while a window is open, also a copy of the
    statistics' sums at its beginning.

    Args:
        statistics: The statistics that the runs are added to.
        engine: The engine over the blocks.
        length: Steps a window.
    """

    def __init__(self, statistics: BlockStatistics, engine: Engine, length: int) -> None:
        self.statistics, self.engine, self.length = statistics, engine, length
        self.windows: list[Window] = []
        self._starts: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
        self._run, self._task = -1, ""
        self._losses: list[float] = []
        self._first = False

    def begin(self, task: str) -> None:
        """Takes note that a run starts; what was open of the run before is dropped."""
        self._run, self._task = self._run + 1, task
        self._losses, self._first = [], True
        self._before = self.statistics.sums()

    def note(self, loss: float) -> None:
        """Takes note of a step and its loss."""
        self._losses.append(loss)
        if self._first and len(self._losses) == LOOK:
            _, energy, curvature = self._since()
            start = (sum(self._losses) / LOOK, energy, curvature)
            self._starts.setdefault(self._task, []).append(start)
        if len(self._losses) == self.length:
            self._close()

    def _since(self) -> tuple[Tensor, ...]:
        return tuple(one.cpu() for one in self.statistics.since(self._before))

    def _close(self) -> None:
        signal, energy, curvature = self._since()
        loss = sum(self._losses) / len(self._losses)
        if math.isfinite(loss) and bool(torch.stack([signal, energy, curvature]).isfinite().all()):
            mean, variance = (one.float().cpu() for one in self.engine.statistics())
            self.windows.append(
                Window(self._task, self._run, loss, signal, energy, curvature, mean, variance)
            )
        self._losses, self._first = [], False
        self._before = self.statistics.sums()

    def reading(self, window: Window, scales: Tensor) -> Reading:
        """Returns what a tuning run with these scales would see where a window stands.

        ``E[(loss_plus - loss_minus)^2] = 4 eps^2 sum_i scale_i^2 E_i`` and ``E[loss_plus +
        loss_minus - 2 loss] = eps^2 sum_i scale_i^2 h_i``, so that no probe is needed; eps
        leaves with the share of the first value.

        Args:
            window: One of `windows`.
            scales: The scales, up to a common factor, [N].
        """
        starts = self._starts[window.task]
        loss = sum(one[0] for one in starts) / len(starts)
        energy = torch.stack([one[1] for one in starts]).mean(0)
        curvature = torch.stack([one[2] for one in starts]).mean(0)
        square = scales.double().square()

        def ratio(now: Tensor, first: Tensor) -> float:
            return share(float((square * now).sum() / (square * first).sum()), 1.0)

        return Reading(
            log_loss=math.log(max(window.loss, 1e-12)),
            loss_share=share(window.loss, loss),
            change=0.5 * ratio(window.energy, energy),
            bend=ratio(window.curvature, curvature),
        )
