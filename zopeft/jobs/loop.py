"""The steps of a tuning run, made by `ZOTrainer` and followed by a listener."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from zopeft.blocks.offloaded import device_of
from zopeft.blocks.shards import how_sharded
from zopeft.jobs.asked import executor_of
from zopeft.jobs.beginning import layout_line
from zopeft.jobs.counted import CountedLoss
from zopeft.jobs.following import Follower
from zopeft.jobs.metrics import Metrics
from zopeft.jobs.prepared import Prepared
from zopeft.jobs.progress import Listener, Progress
from zopeft.jobs.snapshots import Snapshots, size_of
from zopeft.jobs.stopping import stopping
from zopeft.jobs.validating import Validation
from zopeft.models.quiet import quiet
from zopeft.probing.packed import PADDED
from zopeft.recipe.schema import Recipe
from zopeft.training import ZOTrainer, ZOTrainingArguments

_OTHERWISE = ("name", "finetuner", "lr", "options")
"""Settings of the method that a trainer's arguments hold under another name or not at all."""


@dataclass(frozen=True)
class Run:
    """What the steps came to.

    Attributes:
        steps: Steps made, with those of the resumed run.
        skipped: Steps without a finite loss.
        forward_passes: Forward passes of this process.
        seconds: Time of the steps.
        losses: Loss of each step.
        lr: Learning rate at the start.
        lr_last: Learning rate of the last step.
        lr_reason: Where it came from.
        shapes: Which blocks' directions have which shape; "" where none has.
        layout: How batches were laid out: "joined", "packed" or "padded".
        best: The step whose weights are the result; None where they are the last ones.
        stopped: The step that it was stopped at before its end; None where it was not.
        differing: What was found of the finite-difference step of a score; None where nothing was
            looked for.
        spikes: Projected gradients far larger than those before (`zopeft.optim.clipping.SPIKE`).
    """

    steps: int
    skipped: int
    forward_passes: int
    seconds: float
    losses: list[float]
    lr: float
    lr_last: float
    lr_reason: str
    shapes: str
    layout: str
    best: int | None
    stopped: int | None
    differing: dict[str, float] | None = None
    spikes: int = 0


class FollowedTrainer(ZOTrainer):
    """A trainer whose run is followed.

    Args:
        *args: As of `ZOTrainer`.
        follower: Follows it.
        validation: Evaluates it as it goes.
        snapshots: Whether checkpoints are saved by the rule of `zopeft.jobs.snapshots`.
        **options: As of `ZOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        follower: Follower,
        validation: Validation,
        snapshots: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, callbacks=[follower, validation], **options)
        # What it would print, the follower tells.
        self.remove_callback(PrinterCallback)
        self.follower = follower
        follower.trainer = self
        if snapshots:
            out, tell = Path(str(self.args.output_dir)), follower.note
            self.add_callback(Snapshots(out, lambda: size_of(self.model, self.method), tell))

    def on_settled(self) -> None:
        """See `ZOTrainer.on_settled`."""
        self.follower.settled()

    def on_looking(self, line: str) -> None:
        """See `ZOTrainer.on_looking`."""
        self.follower.listener(Progress("begin", note=line))


def run_steps(
    recipe: Recipe,
    out: Path,
    prepared: Prepared,
    metrics: Metrics,
    resume: bool,
    listener: Listener,
) -> Run:
    """Makes the steps of a run.

    Args:
        recipe: Its settings.
        out: Its folder, for journal and checkpoints.
        prepared: Its objects, made before.
        metrics: Takes what is measured as it goes.
        resume: Whether the run in `out` is continued.
        listener: Called after each step.

    Returns:
        What they came to.

    Raises:
        InputError: The run cannot be resumed.
        RunError: The loss was not finite for some steps in a row.
    """
    from zopeft.tasks.logits import try_padding

    goal = prepared.goal
    loss = CountedLoss(goal.loss)
    batches = partial(layout_line, recipe)
    follower = Follower(loss, metrics, listener, batches, recipe.training.log_steps, goal.score)
    validation = Validation(recipe, prepared, out, follower, listener)
    with quiet():
        if goal.generates is None:
            try_padding(prepared.blocks.model, goal.train.encoded, goal.collate.pad)
        trainer = FollowedTrainer(
            prepared.blocks.model,
            _arguments(recipe, out, prepared),
            goal.collate,
            goal.train,
            blocks=prepared.blocks,
            finetuner=prepared.finetuner,
            loss_function=loss,
            executor=executor_of(recipe),
            follower=follower,
            validation=validation,
            snapshots=_by_rule(recipe, prepared),
        )
        started = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=True if resume else None)
        finally:
            stopping.clear()
        seconds = time.monotonic() - started
        best = validation.result()
    return _told(recipe, out, trainer, loss, seconds, best, validation.stopped)


def _by_rule(recipe: Recipe, prepared: Prepared) -> bool:
    """Whether a run takes snapshots by itself: not of a model that processes hold together."""
    asked = recipe.training.journal and not recipe.training.save_steps
    return asked and not how_sharded(prepared.blocks.model)


def check_steps(recipe: Recipe, out: Path, prepared: Prepared) -> None:
    """Refuses settings of a run that no method or trainer takes, without a step.

    Args:
        recipe: Its settings.
        out: Its folder.
        prepared: Its objects.

    Raises:
        InputError: One of them makes no sense with the others.
    """
    from zopeft.training.making import method_of

    arguments = _arguments(recipe, out, prepared)
    method_of(arguments, prepared.blocks, prepared.finetuner, prepared.train)


def _told(
    recipe: Recipe,
    out: Path,
    trainer: FollowedTrainer,
    loss: CountedLoss,
    seconds: float,
    best: int | None,
    stopped: int | None,
) -> Run:
    """Returns what a trainer that has finished came to."""
    method = trainer.method
    first = method.param_groups[0]
    losses = dict(trainer.follower.losses.items())
    if recipe.training.journal and trainer.args.order == 0:
        losses |= journaled_losses(out)
    last = getattr(method, "last_record", None)
    rate = getattr(method, "rate", None)
    reason = "given" if recipe.method.lr != "auto" else "the method's default"
    return Run(
        steps=int(trainer.state.global_step),
        skipped=int(getattr(method, "skipped", 0)),
        forward_passes=max(loss.calls, int(getattr(method, "forward_passes", 0))),
        seconds=seconds,
        losses=[losses[step] for step in sorted(losses)],
        lr=float(first.get("initial_lr", first["lr"]) if rate is None else rate.began),
        lr_last=float(first["lr"] if last is None else last.lr[0]),
        lr_reason=str(getattr(method, "lr_reason", reason)),
        shapes=_shapes_of(method),
        layout=trainer.layout.way if trainer.args.order == 0 else PADDED,
        best=best,
        stopped=stopped,
        differing=None if trainer.differing is None else trainer.differing.to_dict(),
        spikes=method.clip.spikes if trainer.args.order == 0 else 0,
    )


def _shapes_of(method: Any) -> str:
    """Returns one line on the shapes of a method's directions."""
    from zopeft.finetuner.subspaces import Fitted

    engine = getattr(method, "engine", None)
    fitted = getattr(method, "fitted", None)
    if fitted is None and engine is not None:
        fitted = Fitted(engine.shapes)
    return "" if fitted is None else fitted.report


def journaled_losses(out: Path) -> dict[int, float]:
    """Returns the losses in a run's journal, by number of steps made."""
    from zopeft.journal import Journal

    file = out / "journal.bin"
    if not file.exists():
        return {}
    records = Journal.open(file).records()
    return {r.step + 1: r.seen for r in records}


def _arguments(recipe: Recipe, out: Path, prepared: Prepared) -> ZOTrainingArguments:
    """Returns the trainer's arguments."""
    training, method = recipe.training, recipe.method
    device = device_of(prepared.blocks.model)
    return ZOTrainingArguments(
        output_dir=str(out),
        method=prepared.method,
        learning_rate=method.lr,
        **{name: value for name, value in asdict(method).items() if name not in _OTHERWISE},
        method_options=dict(method.options),
        journal=training.journal,
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        layout=training.layout,
        lr_scheduler_type=_schedule(recipe),
        warmup_steps=training.warmup,
        parallel=training.parallel,
        fingerprint_steps=training.fingerprint_steps,
        ddp_timeout=training.ddp_timeout,
        report_to=training.report_to,
        run_name=out.name,
        seed=training.seed,
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=1,
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device.type == "cpu" and not torch.backends.mps.is_available(),
    )


def _schedule(recipe: Recipe) -> str:
    """Returns transformers' name of a recipe's schedule."""
    training = recipe.training
    warms = training.warmup and training.schedule == "constant"
    return "constant_with_warmup" if warms else training.schedule
