"""The steps of a tuning run, made by `ZOTrainer` and followed by a listener."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from zopeft.blocks.offloaded import device_of
from zopeft.jobs.progress import Listener, Progress
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


class CountedLoss:
    """A loss function that counts its calls and keeps the last loss.

    Args:
        function: Called with model and batch, returns the loss.
    """

    def __init__(self, function: Callable[[nn.Module, Any], Tensor]) -> None:
        self.function = function
        self.calls = 0
        self.last: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns the loss of a batch."""
        loss = self.function(model, batch)
        self.calls += 1
        self.last = loss.detach()
        return loss

    @property
    def stacked(self) -> Callable[[nn.Module, Any, int], Tensor]:
        """The function's own ``stacked``, counted; missing where it has none."""
        stacked: Callable[[nn.Module, Any, int], Tensor] = self.function.stacked  # type: ignore[attr-defined]

        def counted(model: nn.Module, batch: Any, count: int) -> Tensor:
            losses = stacked(model, batch, count)
            self.calls += count
            self.last = losses.detach().mean()
            return losses

        return counted

    @property
    def needed(self) -> Callable[[Any], Tensor | None]:
        """The function's own ``needed``; missing where it has none."""
        needed: Callable[[Any], Tensor | None] = self.function.needed  # type: ignore[attr-defined]
        return needed

    @property
    def grouped(self) -> Callable[[nn.Module, Any, int, int | None], Tensor]:
        """The function's own ``grouped``, counted as forwards; missing where it has none."""
        grouped: Callable[..., Tensor] = self.function.grouped  # type: ignore[attr-defined]

        def counted(model: nn.Module, batch: Any, count: int, only: int | None) -> Tensor:
            losses = grouped(model, batch, count, only)
            # Of groups that run by themselves, all together are one pass over the batch.
            self.calls += only in (None, 0)
            self.last = losses.detach().mean()
            return losses

        return counted


class Follower(TrainerCallback):
    """Keeps each step's loss and tells the listener.

    Args:
        loss: The loss of the steps that have no record.
        listener: Called after each step.
    """

    def __init__(self, loss: CountedLoss, listener: Listener) -> None:
        self.trainer: ZOTrainer | None = None
        self.loss, self.listener = loss, listener
        self.losses: dict[int, float] = {}
        self.told = ""
        self.lr: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves out the passes that found how to lay out batches; the method counts its own."""
        self.loss.calls = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of the rate of the step that is about to be made."""
        if self.trainer is not None:
            self.lr = float(self.trainer.method.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of the step that has just been made."""
        method = self.trainer.method if self.trainer is not None else None
        record = getattr(method, "last_record", None)
        if record is not None:
            loss, grad = record.loss, record.projected_grads[0]
        else:
            loss, grad = float("nan") if self.loss.last is None else float(self.loss.last), None
        self.losses[state.global_step] = loss
        note = getattr(method, "unread", "")
        note, self.told = ("" if note == self.told else note), note
        step, most = state.global_step, args.max_steps
        self.listener(Progress("tune", step, most, loss, grad, self.lr, note))


def run_steps(recipe: Recipe, out: Path, prepared: Any, resume: bool, listener: Listener) -> Run:
    """Makes the steps of a run.

    Args:
        recipe: Its settings.
        out: Its folder, for journal and checkpoints.
        prepared: Its objects, see `zopeft.jobs.tune.Prepared`.
        resume: Whether the run in `out` is continued.
        listener: Called after each step.

    Returns:
        What they came to.

    Raises:
        InputError: The run cannot be resumed.
        RunError: The loss was not finite for some steps in a row.
    """
    from zopeft.tasks import Collator, task_loss
    from zopeft.tasks.logits import try_padding
    from zopeft.tasks.table import table_rows

    loss = CountedLoss(task_loss)
    follower = Follower(loss, listener)
    collate = Collator(prepared.tokenizer, table_rows(prepared.blocks.model))
    with quiet():
        try_padding(prepared.blocks.model, prepared.train.encoded, collate.pad)
        trainer = ZOTrainer(
            prepared.blocks.model,
            _arguments(recipe, out, prepared),
            collate,
            prepared.train,
            blocks=prepared.blocks,
            finetuner=prepared.finetuner,
            loss_function=loss,
            callbacks=[follower],
        )
        follower.trainer = trainer
        started = time.monotonic()
        trainer.train(resume_from_checkpoint=True if resume else None)
        seconds = time.monotonic() - started
    return _told(recipe, out, trainer, follower, loss, seconds)


def _told(
    recipe: Recipe,
    out: Path,
    trainer: ZOTrainer,
    follower: Follower,
    loss: CountedLoss,
    seconds: float,
) -> Run:
    """Returns what a trainer that has finished came to."""
    method = trainer.method
    first = method.param_groups[0]
    losses = journaled_losses(out) if recipe.training.journal and trainer.args.order == 0 else {}
    losses = {**follower.losses, **losses}
    last = getattr(method, "last_record", None)
    reason = "given" if recipe.method.lr != "auto" else "the method's default"
    return Run(
        steps=int(trainer.state.global_step),
        skipped=int(getattr(method, "skipped", 0)),
        forward_passes=max(loss.calls, int(getattr(method, "forward_passes", 0))),
        seconds=seconds,
        losses=[losses[step] for step in sorted(losses)],
        lr=float(first.get("initial_lr", first["lr"])),
        lr_last=float(first["lr"] if last is None else last.lr[0]),
        lr_reason=str(getattr(method, "lr_reason", reason)),
        shapes=_shapes_of(method),
        layout=trainer.layout.way if trainer.args.order == 0 else PADDED,
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
    return {r.step + 1: r.loss for r in records}


def _arguments(recipe: Recipe, out: Path, prepared: Any) -> ZOTrainingArguments:
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
        lr_scheduler_type=training.schedule,
        seed=training.seed,
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=1,
        logging_strategy="no",
        use_cpu=device.type == "cpu" and not torch.backends.mps.is_available(),
    )
