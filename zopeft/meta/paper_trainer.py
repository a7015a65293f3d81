"""Meta-training by the paper's objective: Algorithm 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.finetuner import FineTuner
from zopeft.meta.paper import Outcome, PaperObjective, TaskMemory
from zopeft.meta.settings import MetaSettings
from zopeft.meta.trajectory import LossFunction, Trajectory
from zopeft.noise import step_seed
from zopeft.optim.directions import directions_of
from zopeft.ranks import ALONE, Ranks

Progress = Callable[[int, int, Mapping[str, Any]], None]
Batches = Iterable[tuple[str, Any]]


class PaperTrainer:
    """Trains PertNNs on the loss after one zeroth-order step, along SGD trajectories.

    Each meta-step judges one zeroth-order step of the fine-tuner on a batch
    (`PaperObjective`), moves the PertNNs against its gradient, and then moves the model by
    one first-order step on the same batch. Memory is the model, the activations of one
    pass and one block's gradient; the weights to go back to lie on disk.

    Args:
        model: The model.
        batches: Yields (task name, batch) without end.
        loss_function: From model and batch to a 0-dim loss.
        settings: The settings.
        blocks: The blocks to learn scales for.
        finetuner: The fine-tuner to train.
        ranks: Who makes the steps together; each rank's batches are parts (`zopeft.meta.parts`).

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        Algorithm 2. Where text and released code differ, see `MetaSettings`.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_function: LossFunction,
        settings: MetaSettings,
        blocks: Blocks,
        finetuner: FineTuner,
        ranks: Ranks = ALONE,
    ) -> None:
        self.batches, self.settings, self.finetuner = batches, settings, finetuner
        self.device = blocks[0].parameter.device
        finetuner.nets.to(self.device)
        found = directions_of("meta-training", blocks, settings.noise, settings.noise_rank)
        engine = Engine(blocks, found.family, shapes=found.shapes)
        self.trajectory = Trajectory(model, blocks, engine, loss_function, settings, ranks)
        self.objective = PaperObjective(
            model, engine, finetuner, loss_function, settings.eps, settings.lr_zo, ranks
        )
        parameters = list(finetuner.nets.parameters())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=settings.lr_pertnn)
            if settings.optimizer == "adam"
            else torch.optim.SGD(parameters, lr=settings.lr_pertnn)
        )
        self.history: list[dict[str, Any]] = []
        self._memories: dict[str, TaskMemory] = {}

    def train(self, progress: Progress | None = None) -> dict[str, Any]:
        """Runs all meta-steps.

        Args:
            progress: Called after each meta-step with its number, their total and its
                figures.

        Returns:
            Scores for the artifact's record: resets, mean_gain (loss before minus loss
            after the judged step).

        Raises:
            RunError: The loss was not finite for some steps in a row.
        """
        steps = self.settings.steps
        with self.trajectory:
            for step, (task, batch) in zip(range(steps), self.batches, strict=False):
                figures = self._step(step, task, batch)
                self.history.append(figures)
                if progress is not None:
                    progress(step + 1, steps, figures)
                self.trajectory.compare(step + 1, step + 1 == steps)
                self.trajectory.note(figures["loss"])
        good = [row for row in self.history if math.isfinite(row["loss"])]
        gains = [row["loss"] - row["post_loss"] for row in good]
        return {"resets": self.trajectory.resets, "mean_gain": sum(gains) / max(1, len(gains))}

    def _step(self, step: int, task: str, batch: Any) -> dict[str, Any]:
        seed = step_seed(self.settings.seed, step)
        memory = self._memories.setdefault(task, self._new_memory())
        outcome = self.objective(batch, seed, memory)
        (norm,) = self.trajectory.agreed(outcome.gradient_norm)
        loss = self.trajectory.descend(batch, seed, norm)
        finite = all(map(math.isfinite, (*outcome.losses, outcome.post_loss, loss)))
        if finite:
            self.optimizer.zero_grad()
            outcome.surrogate.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            losses = torch.tensor(outcome.losses, device=self.device)
            self._memories[task] = TaskMemory(losses, outcome.raw)
        return {"step": step, "task": task, "loss": loss if finite else math.nan, **_row(outcome)}

    def _new_memory(self) -> TaskMemory:
        count = len(self.trajectory.blocks)
        return TaskMemory(torch.zeros(2, device=self.device), torch.ones(count, device=self.device))


def _row(outcome: Outcome) -> dict[str, float]:
    """The figures of a judged step, for logs."""
    quartiles = torch.tensor([0.0, 0.5, 1.0], device=outcome.scales.device)
    low, middle, high = torch.quantile(outcome.scales.float(), quartiles).tolist()
    return {
        "loss_plus": outcome.losses[0],
        "loss_minus": outcome.losses[1],
        "post_loss": outcome.post_loss,
        "gradient_norm": outcome.gradient_norm,
        "scale_min": low,
        "scale_median": middle,
        "scale_max": high,
    }
