"""Meta-training by forward passes alone: directions from activations, scales from probes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.engine.direction import Direction
from zopeft.finetuner import FineTuner
from zopeft.meta.activations import InputDirections, linear_inputs
from zopeft.meta.conclusion import Conclusion
from zopeft.meta.forward_run import ForwardRun, without_gradients
from zopeft.meta.paper_trainer import Batches, Progress
from zopeft.meta.probe_statistics import ProbeStatistics
from zopeft.meta.settings import MetaSettings
from zopeft.meta.stopping import Checks, Settled
from zopeft.meta.trajectory import LossFunction
from zopeft.noise import role_seed, step_seed
from zopeft.optim.defaults import default_reach
from zopeft.optim.directions import directions_of
from zopeft.optim.rate import SHARE

TURN = 4
"""Steps that have one direction: S is what the projected gradients of their batches have in
common, and of so many it is less noisy than of two by a third."""
LOOKS = 4
"""One in so many meta-steps looks at activations, where subspaces are learned."""
ROLE = "probes"


class ForwardTrainer:
    """Sets each group's scale, and the directions of its inputs, without a backward pass.

    With ``capacity="subspace"`` the first quarter of the steps runs a forward pass each and
    sums up what goes into the linear layers (`InputDirections`). In the others each group of
    blocks (`ProbeStatistics`) is probed on both sides along a direction of its own, in its
    shape, and the loss at the weights is taken: ``1 + 2 R`` forward passes for R groups. A
    direction serves `TURN` steps; then the model moves against what they saw,

        theta_i <- theta_i - lr g_r u_i,    lr = q (1 - t / T) sum E / sum E h,

    g_r the mean projected gradient of the block's group and q the share of signal that a run
    begins with, never further along a u than lr="auto" would go. From the base model on, each
    run is of ``reset_every`` steps at most.

    A direction in a subspace sees many times what isotropic noise sees of a gradient, in S, E and
    h alike, so a layer with one would drown a table without one, to which the objective is blind.
    The scales therefore begin with each layer's part in a step as it is with isotropic noise
    (`InputDirections.gains`), and are then `zopeft.meta.signal.closed_form`'s times these.

    Args:
        model: The model.
        batches: Yields (task name, batch) without end.
        loss_function: From model and batch to a 0-dim loss.
        settings: The settings, ``gradients="forward"``.
        blocks: The blocks to learn scales for.
        finetuner: The fine-tuner whose scales are set.
        token_counts: How often each token occurs in the tasks' data, [V]; for
            ``rows="frequency"``.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss_function: LossFunction,
        settings: MetaSettings,
        blocks: Blocks,
        finetuner: FineTuner,
        token_counts: Tensor | None = None,
    ) -> None:
        self.model, self.batches, self.loss_function = model, batches, loss_function
        self.settings, self.blocks, self.finetuner = settings, blocks, finetuner
        self.token_counts = token_counts
        self.match = finetuner.match(blocks)
        self.start = torch.ones(len(blocks), dtype=torch.float64)
        self.history: list[dict[str, Any]] = []
        self._progress: Progress | None = None

    def train(self, progress: Progress | None = None) -> dict[str, Any]:
        """Makes the meta-steps and sets the scales.

        Args:
            progress: Called after each meta-step with its number, their total and its
                figures.

        Returns:
            Scores and the statistics S, E, h of every block for the artifact's record.

        Raises:
            RunError: The loss was not finite for some steps in a row.
        """
        self._progress = progress
        looks = looks_of(self.settings)
        stream = iter(self.batches)
        with without_gradients(self.model):
            if looks:
                self._look(stream, looks)
            self.run = ForwardRun(
                self.model,
                self.blocks,
                self._engine(),
                self.loss_function,
                self.settings.eps,
                self.settings.reset_every,
            )
            self.run.forward_passes = looks
            self.statistics = ProbeStatistics(self.blocks, self.start)
            with self.run:
                mean, variance = self.run.engine.statistics()
                self._rms = (variance + mean.square()).sqrt().cpu()
                self._probe(stream, range(looks, self.settings.steps))
        return self._conclude()

    def _engine(self) -> Engine:
        """Returns the engine of directions in the shapes that the fine-tuner gives them."""
        shapes = self.finetuner.shapes(self.match, self.token_counts)
        settings = self.settings
        found = directions_of(
            "meta-training", self.blocks, settings.noise, settings.noise_rank, shapes
        )
        return Engine(self.blocks, found.family, shapes=found.shapes)

    def _look(self, stream: Iterator[tuple[str, Any]], steps: int) -> None:
        """Learns the directions of the inputs."""
        rank, seed = self.finetuner.config.rank, self.settings.seed
        inputs = InputDirections(self.blocks, linear_inputs(self.blocks), rank, seed)
        for step, (task, batch) in zip(range(steps), stream, strict=False):
            with inputs.watching(batch), torch.no_grad():
                loss = float(self.loss_function(self.model, batch))
            self._tell(step, task, loss, math.nan)
        self.finetuner.set_bases(self.match, inputs.bases())
        for index, gain in inputs.gains(self.finetuner.config.mix).items():
            self.start[index] = gain**-0.5

    def _probe(self, stream: Iterator[tuple[str, Any]], steps: range) -> None:
        """Measures along a run of zeroth-order steps, or as many of them as are enough."""
        checks, settled = Checks(), Settled(self.settings.stop)
        scales = self.start.float().to(self.run.engine.device)
        for step, (task, batch) in zip(steps, stream, strict=False):
            turn, place = divmod(step - steps.start, TURN)
            if place == 0:
                seed = role_seed(step_seed(self.settings.seed, turn), ROLE)
                direction = Direction(seed, scales)
                self.statistics.begin()
            loss, slopes = self._step(batch, direction)
            self._tell(step, task, loss, math.hypot(*slopes))
            last = place == TURN - 1 or step + 1 == steps.stop
            if last and self.statistics.batches:
                self._move(direction, 1.0 - (step - steps.start) / len(steps))
            self.run.note(loss)
            if last and self.settings.stop and checks.due(step + 1 - steps.start):
                found = self._found()
                if settled.check(found.scales, found.gain):
                    break

    def _step(self, batch: Any, direction: Direction) -> tuple[float, list[float]]:
        """Probes every group; returns the loss at the weights, and the projected gradients."""
        eps, run = self.settings.eps, self.run
        centre = run.loss(batch)
        slopes, bends = [], []
        for indices in self.statistics.groups.values():
            plus, minus = run.pair(batch, direction.only(indices))
            slopes.append((plus - minus) / (2.0 * eps))
            bends.append((plus + minus - 2.0 * centre) / eps**2)
        self.statistics.take(slopes, bends)
        return centre, slopes

    def _move(self, direction: Direction, share: float) -> None:
        """Makes one zeroth-order step along the groups' directions."""
        _, energy, curvature = self.statistics.measured()
        bend = float((energy * curvature.clamp_min(0.0)).sum())
        if not bend > 0.0:
            return
        steps = -share * SHARE * float(energy.sum()) / bend * self.statistics.slopes
        longest = default_reach(self.blocks) * self.settings.eps
        coefficients = torch.zeros(len(self.blocks), dtype=torch.float64)
        for step, indices in zip(steps, self.statistics.groups.values(), strict=True):
            coefficients[indices] = step.clamp(-longest, longest)
        self.run.move(direction, coefficients)

    def _tell(self, step: int, task: str, loss: float, norm: float) -> None:
        figures = {"step": step, "task": task, "loss": loss, "gradient_norm": norm}
        self.history.append(figures)
        if self._progress is not None:
            self._progress(step + 1, self.settings.steps, figures)

    def _found(self) -> Conclusion:
        start = None if self.settings.rule == "none" else self.start
        given = (self.blocks, self._rms, self.settings.rule, start)
        return Conclusion.of(self.statistics.blocks(), *given)

    def _conclude(self) -> dict[str, Any]:
        found = self._found()
        self.finetuner.set_scales(self.match, found.scales.float())
        groups = zip(
            self.statistics.groups,
            *(each.tolist() for each in self.statistics.measured()),
            strict=True,
        )
        return {
            "resets": self.run.resets,
            "forward_passes": self.run.forward_passes,
            "shapes": self.finetuner.fitted(self.match, self.token_counts).report,
            **found.told(self.blocks),
            "kept_of_groups": dict(self.statistics.kept),
            "groups_measured": {
                name: {"signal": s, "energy": e, "curvature": h} for name, s, e, h in groups
            },
        }


def looks_of(settings: MetaSettings) -> int:
    """Returns how many of the meta-steps look at activations."""
    return settings.steps // LOOKS if settings.capacity == "subspace" else 0
