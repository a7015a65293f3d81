"""Gathering the bases of a fine-tuner along a first-order trajectory."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from zopeft.finetuner import FineTunerConfig
from zopeft.meta.leading import LeadingDirections, matrices
from zopeft.meta.settings import MetaSettings
from zopeft.meta.stopping import Captured, Checks
from zopeft.meta.trajectory import Trajectory
from zopeft.noise import step_seed


class BasisGathering:
    """Makes steps down the trajectory and keeps what their gradients say about directions.

    A gradient of task k counts ``w = 1 / (mean of |g|^2 over the task's steps so far)``, so that
    no task drowns the others. A task's first gradient has no mean before it, and is made
    twice: once for its norm.

    Args:
        trajectory: The trajectory.
        config: The fine-tuner's configuration: rank, and whether embeddings are scaled by
            token frequency, which then have no subspace.
        settings: The settings.
    """

    def __init__(
        self, trajectory: Trajectory, config: FineTunerConfig, settings: MetaSettings
    ) -> None:
        self.trajectory, self.seed = trajectory, settings.seed
        chosen = matrices(trajectory.blocks, embeddings=config.rows == "none")
        self.directions = LeadingDirections(trajectory.blocks, chosen, config.rank, settings.seed)
        self.blocks, self.stop = trajectory.blocks, settings.stop
        self._squares: dict[str, tuple[float, int]] = {}
        self._checks, self._judged, self._steps = Checks(), 0.0, 0
        self._judge: Captured | None = None

    @property
    def enough(self) -> bool:
        """Whether the bases capture hardly more of the gradients to come than they did before."""
        judge = self._judge
        if not self.stop:
            return False
        if judge is None:
            if self._checks.due(self._steps):
                self._judge = Captured(self.blocks, self.bases())
            return False
        if judge.left > 0:
            return False
        before, self._judged, self._judge = self._judged, judge.share, None
        return self._judged < before * (1.0 + self.stop)

    def _take(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        if self._judge is not None:
            self._judge.take(parameter, indices, gradient)
        self.directions.take(parameter, indices, gradient)

    def step(
        self, step: int, task: str, batch: Any, last_norm: float, share: float
    ) -> tuple[float, float]:
        """Makes one step.

        Args:
            step: Its number.
            task: The batch's task.
            batch: The batch.
            last_norm: Norm of the gradient before, to clip by.
            share: Share of the learning rate to use.

        Returns:
            The loss before the step, and the norm of its gradient.
        """
        if task not in self._squares:
            self.directions.begin(0.0)
            self.trajectory.backward(batch, self.directions.take)
            self._note(task, self._norm())
        total, count = self._squares.get(task, (0.0, 0))
        weight = count / total if total > 0.0 else 0.0
        self.directions.begin(weight)
        if self._judge is not None:
            self._judge.begin(weight)
        self._steps += 1
        loss = self.trajectory.descend(
            batch, step_seed(self.seed, step), last_norm, share, self._take
        )
        norm = self._norm()
        self._note(task, norm)
        return loss, norm

    def _norm(self) -> float:
        """The norm of the last gradient, the same on all ranks."""
        return self.trajectory.agreed(float(self.directions.gradient_norm))[0]

    def _note(self, task: str, norm: float) -> None:
        square = norm**2
        total, count = self._squares.get(task, (0.0, 0))
        if math.isfinite(square) and square > 0.0:
            self._squares[task] = (total + square, count + 1)

    def bases(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Returns left and right directions of the blocks that had gradients."""
        return self.directions.bases()
