"""Meta-training by the lr-free objective: block statistics in the trajectory's own passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.finetuner import FineTuner
from zopeft.meta.conclusion import Conclusion
from zopeft.meta.gathering import BasisGathering
from zopeft.meta.paper_trainer import Batches, Progress
from zopeft.meta.settings import MetaSettings
from zopeft.meta.statistics import BlockStatistics
from zopeft.meta.stopping import Checks, Settled
from zopeft.meta.trajectory import LossFunction, Trajectory
from zopeft.noise import step_seed
from zopeft.optim.directions import directions_of
from zopeft.ranks import ALONE, Ranks

LabelDraw = Callable[[Any, Any, int], tuple[Any, int]]
StepMaker = Callable[[int, str, Any, float, float], tuple[float, float]]
"""From step, task, batch, last norm and share of the lr to loss and gradient norm."""


class SignalTrainer:
    """Sets each group's scale from signal, energy and curvature along one trajectory.

    ``theta <- theta - lr (1 - t / T) g min(1, clip / norm)``; every pass adds its gradient
    to S and E, every second step one more pass with labels drawn from the model adds to
    h (`BlockStatistics`); the scales are `closed_form`'s. Cost: 1.5 passes a step and no
    second copy of the weights. Clipping goes by the norm of the step before, since the
    gradient is used up as it is made; the first step from the base model only looks.

    With ``capacity="subspace"`` the first half of the steps gathers the bases
    (`BasisGathering`); then the trajectory starts again, and S, E and h are measured as
    directions in those subspaces see the gradient.

    Args:
        model: The model.
        batches: Yields (task name, batch) without end.
        loss_function: From model and batch to a 0-dim loss.
        draw_labels: From model, batch and seed to a batch with drawn labels and their
            number, see `zopeft.tasks.sampling`.
        settings: The settings; `rule` chooses the closed form.
        blocks: The blocks to learn scales for.
        finetuner: The fine-tuner whose scales are set.
        token_counts: How often each token occurs in the tasks' data, [V]; for
            ``rows="frequency"``.
        ranks: Who makes the steps together; each rank's batches are parts (`zopeft.meta.parts`).
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_function: LossFunction,
        draw_labels: LabelDraw,
        settings: MetaSettings,
        blocks: Blocks,
        finetuner: FineTuner,
        token_counts: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.batches, self.settings = model, batches, settings
        self.token_counts = token_counts
        self.draw_labels, self.finetuner, self.blocks = draw_labels, finetuner, blocks
        found = directions_of("meta-training", blocks, settings.noise, settings.noise_rank)
        self.engine = Engine(blocks, found.family, shapes=found.shapes)
        self.trajectory = Trajectory(model, blocks, self.engine, loss_function, settings, ranks)
        self.match = finetuner.match(blocks)
        self.statistics = BlockStatistics(blocks, step_seed(settings.seed, -1))
        self.history: list[dict[str, Any]] = []
        self._gathered, self._checks = 0, Checks()
        self._settled = Settled(settings.stop)

    def train(self, progress: Progress | None = None) -> dict[str, Any]:
        """Runs the trajectory and sets the scales.

        Args:
            progress: Called after each meta-step with its number, their total and its
                figures.

        Returns:
            Scores and the statistics S, E, h of every group for the artifact's record.

        Raises:
            RunError: The loss was not finite for some steps in a row.
        """
        steps = self.settings.steps
        first = steps // 2 if self.settings.capacity == "subspace" else 0
        self.engine.adopt()
        mean, variance = self.engine.statistics()
        rms = (variance + mean.square()).sqrt()
        stream = iter(self.batches)
        with self.trajectory:
            if first:
                self._gather(stream, range(first), progress)
                self._gathered = len(self.history)
                self.trajectory.restart()
            shapes = self.finetuner.shapes(self.match, self.token_counts)
            self.statistics.shapes = {
                index: shape.to(self.blocks[index].parameter.device)
                for index, shape in shapes.items()
            }
            self._rms = rms
            begin = self._gathered
            self._walk(
                stream,
                range(begin, begin + steps - first),
                self._step,
                progress,
                lambda: self._enough,
            )
        return self._conclude(rms)

    def _gather(
        self, stream: Iterator[tuple[str, Any]], steps: range, progress: Progress | None
    ) -> None:
        """Learns the bases; what they were gathered in is gone afterwards."""
        gathering = BasisGathering(self.trajectory, self.finetuner.config, self.settings)
        self._walk(stream, steps, gathering.step, progress, lambda: gathering.enough)
        self.finetuner.set_bases(self.match, gathering.bases())

    def _walk(
        self,
        stream: Iterator[tuple[str, Any]],
        steps: range,
        make: StepMaker,
        progress: Progress | None,
        enough: Callable[[], bool],
    ) -> None:
        """Makes some steps, whose learning rate falls to zero, or as many of them as are enough."""
        norm = math.nan
        for step, (task, batch) in zip(steps, stream, strict=False):
            share = 1.0 - (step - steps.start) / len(steps)
            loss, norm = self.trajectory.agreed(*make(step, task, batch, norm, share))
            figures = {"step": step, "task": task, "loss": loss, "gradient_norm": norm}
            self.history.append(figures)
            if progress is not None:
                progress(step + 1, self.settings.steps, figures)
            resets = self.trajectory.resets
            self.trajectory.compare(step + 1, step + 1 == steps.stop)
            self.trajectory.note(loss)
            if self.trajectory.resets != resets:
                # The norm where a run has ended says nothing of where it starts.
                norm = math.nan
            if self.settings.stop and any(self.trajectory.agreed(enough())):
                break

    def _step(
        self, step: int, task: str, batch: Any, last_norm: float, share: float
    ) -> tuple[float, float]:
        seed = step_seed(self.settings.seed, step)
        statistics = self.statistics
        own: Tensor | None = None
        if step % 2 == 0:
            own, drawn, count = self.trajectory.losses(
                batch, lambda: self.draw_labels(self.model, batch, seed)
            )
            statistics.begin_curvature(count)
            self.trajectory.backward(batch, statistics.take_curvature, drawn, again=True)
            del drawn
        statistics.begin_gradient(step)
        loss = self.trajectory.descend(batch, seed, last_norm, share, statistics.take_gradient, own)
        return loss, float(statistics.gradient_norm)

    @property
    def _enough(self) -> bool:
        """Whether the scales have settled."""
        stop, steps = self.settings.stop, len(self.history) - self._gathered
        if not stop or self.settings.policy != "constant" or not self._checks.due(steps):
            return False
        found = self._found()
        return self._settled.check(found.scales, found.gain)

    def _found(self) -> Conclusion:
        """Returns what the statistics so far come to."""
        return Conclusion.of(self._measured(), self.blocks, self._rms, self.settings.rule)

    def _measured(self) -> tuple[Tensor, Tensor, Tensor]:
        signal = self.statistics.signal()
        return signal, self.statistics.energy(), self.statistics.curvature()

    def _conclude(self, rms: Tensor) -> dict[str, Any]:
        self._rms = rms
        found = self._found()
        self.finetuner.set_scales(self.match, found.scales.float())
        return {
            "resets": self.trajectory.resets,
            "shapes": self.finetuner.fitted(self.match, self.token_counts).report,
            **found.told(self.blocks),
        }
