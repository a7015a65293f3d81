"""Streaming: how a trainer reads examples that are made as they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zopeft.errors import input_error
from zopeft.tasks.stream import StreamView, TaskStream
from zopeft.training.arguments import ZOTrainingArguments
from zopeft.training.grid import grid_of
from zopeft.training.making import probes_of

if TYPE_CHECKING:
    from zopeft.training.trainer import ZOTrainerMixin


def view_of(stream: TaskStream, args: ZOTrainingArguments) -> StreamView:
    """Returns the examples of a whole run.

    Args:
        stream: What they are read from.
        args: The arguments, which say how many there are.

    Raises:
        InputError: They do not.
    """
    if args.max_steps <= 0:
        what = "data that is streamed has no length of which epochs could be made"
        raise input_error("max_steps", what, args.max_steps, "give the number of steps")
    rows = max(1, args.world_size)
    if args.order == 0:
        rows = grid_of(args.parallel, rows, probes_of(args)).rows
    return stream.view(args.max_steps * examples_of_step(args, rows))


def examples_of_step(args: ZOTrainingArguments, rows: int) -> int:
    """Returns how many examples a step takes.

    Args:
        args: The arguments.
        rows: Ranks that its rows come from.
    """
    return args.train_batch_size * args.gradient_accumulation_steps * rows


def replayed(trainer: ZOTrainerMixin) -> int:
    """Returns how many examples belong to steps that a journal holds, which need none of them."""
    journal = trainer.recording.journal
    steps = 0 if trainer.resumed is None or journal is None else journal.next_step
    return steps * examples_of_step(trainer.args, trainer.grid.rows)
