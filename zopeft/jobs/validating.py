"""Evaluations during a run: scores, the best weights, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from zopeft.jobs.best import best_step, keep_best, load_best
from zopeft.jobs.evaluate import measure
from zopeft.jobs.following import Follower
from zopeft.jobs.metrics import EVALUATION
from zopeft.jobs.progress import Listener, Progress
from zopeft.recipe.schema import Recipe

if TYPE_CHECKING:
    from zopeft.jobs.prepared import Prepared


class Validation(TrainerCallback):
    """Measures every so many steps and at the last one, keeps the best, stops a run in time.

    What counts is the validation loss, or the score that is optimised. Scores that the run's
    metrics hold already, of a run that is gone on with, are not measured again.

    Args:
        recipe: The run's settings.
        prepared: Its objects.
        folder: Its folder.
        follower: What follows it, with its metrics.
        listener: Called with reports.

    Attributes:
        stopped: The step that the run was stopped at; None where it was not.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        folder: Path,
        follower: Follower,
        listener: Listener,
    ) -> None:
        self.recipe, self.prepared, self.folder = recipe, prepared, folder
        self.follower, self.metrics, self.listener = follower, follower.metrics, listener
        self.stopped: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates where it is due."""
        training, step = self.recipe.training, state.global_step
        every = training.eval_steps
        if not every or (step % every and step != args.max_steps):
            return
        scores = self.metrics.scores(step)
        known = scores is not None
        if scores is None:
            scores = self._measured(step)
        best, since = self._best(step, scores)
        held = best_step(self.folder)
        if training.keep_best and best == step and (held is None or held < step):
            # Before its line: what the metrics tell of is there.
            self._keep(step)
        if not known:
            self.metrics.evaluated(step, scores, self.follower.seconds)
            self.follower.report({f"{EVALUATION}{name}": one for name, one in scores.items()})
        if training.patience and since >= training.patience:
            self.stopped = step
            control.should_training_stop = True
            name = self._score
            least = f"highest {name}" if name else "lowest validation loss"
            what = f"stopped at step {step}: the {least} was that of step {best}"
            self.listener(Progress("tune", note=what))

    def _measured(self, step: int) -> dict[str, Any]:
        one, started = self.prepared, time.monotonic()
        scores = measure(
            self.recipe,
            one.blocks.model,
            one.tokenizer,
            one.task,
            one.validation,
            self.listener,
            f"evaluate step {step}",
            one.goal,
            one.scored,
        )
        self.follower.leave_out(time.monotonic() - started)
        return scores

    def _keep(self, step: int) -> None:
        trainer = self.follower.trainer
        if trainer is not None and trainer.is_world_process_zero():
            keep_best(self.prepared.blocks, self.folder, step)

    @property
    def _score(self) -> str:
        """The score whose highest value is the best; "" where the lowest loss is."""
        metric = self.prepared.task.metric if self.recipe.training.best_by == "metric" else ""
        return self.prepared.goal.score or ("" if metric == "perplexity" else metric)

    def _best(self, step: int, scores: Mapping[str, Any]) -> tuple[int, int]:
        """Returns the step with the lowest loss so far, and the evaluations since then."""
        name = self._score
        key, sign = (name, -1.0) if name else ("loss", 1.0)
        losses = {}
        for one in self.metrics.evaluations:
            if 0 < one["step"] < step:
                before = one.get(f"{EVALUATION}{key}")
                losses[one["step"]] = math.inf if before is None else sign * float(before)
        loss = sign * float(scores[key])
        losses[step] = loss if math.isfinite(loss) else math.inf
        best = min(losses, key=lambda at: losses[at])
        return best, sum(at > best for at in losses)

    def result(self) -> int | None:
        """Puts the best weights into the model, where they are kept; returns their step."""
        if not self.recipe.training.keep_best:
            return None
        assert self.follower.trainer is not None
        self.follower.trainer.accelerator.wait_for_everyone()
        return load_best(self.prepared.blocks, self.folder)
