"""Resuming: which checkpoint and which journal a run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import TrainOutput

from zopeft.blocks import Blocks
from zopeft.errors import input_error
from zopeft.ranks import Ranks
from zopeft.training import checkpoints
from zopeft.training.arguments import ZOTrainingArguments
from zopeft.training.loading import read_state
from zopeft.training.recording import Recording

if TYPE_CHECKING:
    from zopeft.training.trainer import ZOTrainerMixin


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on from.

    Args:
        checkpoint: The checkpoint; None to take all steps from the journal.
        run: The run's name; "" where it has none.
    """

    checkpoint: Path | None
    run: str


def where_from(
    args: ZOTrainingArguments,
    recording: Recording,
    resume: str | bool | None,
    find_blocks: Callable[[], Blocks],
) -> Resumed | None:
    """Returns where a run goes on from; None to start anew.

    A run that has no checkpoint is brought to the start of its journal.

    Args:
        args: The arguments.
        recording: What opens the journal.
        resume: True for the newest whole checkpoint, or a checkpoint's folder.
        find_blocks: Returns what is trained.

    Raises:
        InputError: There is nothing to resume from, or a journal is not to be overwritten.
    """
    journaled = args.order == 0 and args.journal
    recording.run = ""
    if not resume:
        if journaled and recording.writes:
            recording.refuse_old(args.overwrite)
        return None
    journal = None
    if journaled:
        with args.main_process_first(desc="opening the journal"):
            journal = recording.open()
    run = None if journal is None else journal.header.run
    if isinstance(resume, bool):
        checkpoint = checkpoints.newest_checkpoint(str(args.output_dir), run)
    else:
        checkpoint = checkpoints.given_checkpoint(resume)
    if checkpoint is None:
        if journal is None:
            raise input_error(
                "resume",
                "there is neither a whole checkpoint nor a journal",
                args.output_dir,
                "start without resuming",
            )
        recording.to_start(find_blocks())
        return Resumed(None, journal.header.run)
    found = checkpoints.read_seal(checkpoint) or {}
    return Resumed(checkpoint, run or str(found.get("run", "")))


def check_seen(ranks: Ranks, recording: Recording) -> None:
    """Refuses to go on where the processes do not see the same journal.

    Raises:
        InputError: One of them sees another one, or none.
    """
    if not ranks.several:
        return
    journal = recording.journal
    every = ranks.everyone(0 if journal is None else journal.next_step)
    for number, steps in enumerate(every):
        if steps != every[0]:
            raise input_error(
                "output_dir",
                f"rank {number} sees {steps} steps in its journal, rank 0 {every[0]}",
                str(recording.path.parent),
                "give a folder that all of them share",
            )


def finished(trainer: ZOTrainerMixin, checkpoint: Path) -> TrainOutput | None:
    """Loads a checkpoint of a run that has made all of its steps; None for others.

    The Trainer itself would make one step more.
    """
    state = read_state(checkpoint)
    args = trainer.args
    steps = args.max_steps
    if steps <= 0:
        steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    if state.global_step < steps:
        return None
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.create_optimizer_and_scheduler(steps)
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    trainer.state = state
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        trainer._load_best_model()
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    mean = sum(losses) / len(losses) if losses else float("nan")
    return TrainOutput(state.global_step, mean, {"train_loss": mean})


def keep_last_good(trainer: ZOTrainerMixin) -> None:
    """Saves weights and optimizer of a run that gave up, as its last good step left them."""
    method = trainer.method
    if method is None or getattr(method, "steps", 0) == 0 or not trainer.is_in_train:
        return
    trainer.recording.append(method.last_record)
    if method.steps == trainer.state.global_step + 1:
        # The step that gave up has been counted by the method, and changed no weight.
        trainer.lr_scheduler.step()
        trainer.state.global_step += 1
    trainer._save_checkpoint(trainer.model, trial=None)
