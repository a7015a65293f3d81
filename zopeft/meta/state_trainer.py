"""Meta-training of scales that move with the state of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.finetuner import BoundedPertNN, FineTuner
from zopeft.meta.paper_trainer import Batches
from zopeft.meta.policy import Problem, fit
from zopeft.meta.settings import MetaSettings
from zopeft.meta.signal_trainer import LabelDraw, SignalTrainer
from zopeft.meta.trajectory import LossFunction
from zopeft.meta.windows import Window, WindowLog
from zopeft.ranks import ALONE, Ranks

QUARTERS = 4


class StateTrainer(SignalTrainer):
    """Sets each group's closed-form scale, and teaches PertNNs to move it with the state.

    Each run from the base model is of one task, the tasks in turn, and is cut into windows
    (`WindowLog`); its learning rate falls to zero at its end. The closed form is that of all
    runs together; on the windows the PertNNs are learned (`zopeft.meta.policy.fit`), with
    whole tasks held out in turn where there are several, else whole runs, and every fourth
    window of a single run. Where that gains nothing the scales are the closed form.

    Args:
        model: The model.
        batches: Yields (task name, batch) without end.
        loss_function: From model and batch to a 0-dim loss.
        draw_labels: From model, batch and seed to a batch with drawn labels and their number.
        settings: The settings.
        blocks: The blocks to learn scales for.
        finetuner: The fine-tuner, with ``output="bounded"``.
        tasks: Names of the tasks.
        token_counts: As for `SignalTrainer`.
        ranks: As for `SignalTrainer`.
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
        tasks: Sequence[str],
        token_counts: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        common = (model, batches, loss_function, draw_labels, settings, blocks, finetuner)
        super().__init__(*common, token_counts, ranks)
        assert isinstance(finetuner.nets, BoundedPertNN)
        self.nets = finetuner.nets
        self.tasks = list(tasks)
        self.batches = self._of_the_runs_task(batches)
        length = settings.run_length // settings.windows
        self.log = WindowLog(self.statistics, self.engine, length)
        self._run, self._began = -1, 0

    def _of_the_runs_task(self, batches: Batches) -> Iterator[tuple[str, Any]]:
        for task, batch in batches:
            if task == self.tasks[self.trajectory.resets % len(self.tasks)]:
                yield task, batch

    def _step(
        self, step: int, task: str, batch: Any, last_norm: float, share: float
    ) -> tuple[float, float]:
        if self._run != self.trajectory.resets:
            self._run, self._began = self.trajectory.resets, step
            self.log.begin(task)
        share = 1.0 - (step - self._began) / self.settings.run_length
        loss, norm = super()._step(step, task, batch, last_norm, share)
        self.log.note(loss)
        return loss, norm

    def _conclude(self, rms: Tensor) -> dict[str, Any]:
        scores = super()._conclude(rms)
        windows = self.log.windows
        record: dict[str, Any] = {"kept": False, "windows": len(windows)}
        if windows:
            self.nets.cpu()
            problem = self._problem(windows)
            record = asdict(fit(self.nets, problem, self.settings.penalty))
        return {**scores, "policy": record, "windows": [self._row(window) for window in windows]}

    def _problem(self, windows: Sequence[Window]) -> Problem:
        match = self.finetuner.match(self.blocks)
        features = [
            self.finetuner.features(
                match,
                window.mean,
                window.variance,
                torch.zeros(2),
                torch.ones_like(window.mean),
                self.log.reading(window, self._prior()),
            )
            for window in windows
        ]
        return Problem(
            features=torch.stack(features),
            signal=torch.stack([window.signal for window in windows]),
            energy=torch.stack([window.energy for window in windows]),
            curvature=torch.stack([window.curvature for window in windows]),
            parts=parts_of(windows),
            group=match.group,
        )

    def _prior(self) -> Tensor:
        return self.nets.prior.cpu()[self.finetuner.match(self.blocks).group]

    def _row(self, window: Window) -> dict[str, Any]:
        seen = asdict(self.log.reading(window, self._prior()))
        return {"task": window.task, "run": window.run, "loss": window.loss, **seen}


def parts_of(windows: Sequence[Window]) -> Tensor:
    """Returns the part that each window is held out with, long [W].

    Whole tasks where there are several; else whole runs; of a single run, every fourth.
    """
    names: list[Any] = [window.task for window in windows]
    if len(set(names)) < 2:
        names = [window.run for window in windows]
    if len(set(names)) < 2:
        names = [index % QUARTERS for index in range(len(windows))]
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])
