"""What a trainer trains with: its method, its fine-tuner, and its first batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from zopeft.blocks import Blocks
from zopeft.errors import input_error
from zopeft.methods import METHODS
from zopeft.optim.estimator import Estimator
from zopeft.optim.options import options_from
from zopeft.tasks.frequency import frequency_options
from zopeft.training.arguments import ZOTrainingArguments

if TYPE_CHECKING:
    from zopeft.finetuner import FineTuner


def method_of(
    args: ZOTrainingArguments, blocks: Blocks, finetuner: FineTuner | None, dataset: Any
) -> torch.optim.Optimizer:
    """Returns the method over the blocks, with all that the arguments say of it.

    Args:
        args: The arguments.
        blocks: What is trained.
        finetuner: The fine-tuner, for methods that need one.
        dataset: The training data, of which tokens may be counted.
    """
    kind = METHODS[args.method]
    options = {"lr": args.learning_rate, **options_from(kind, args)}
    if kind.needs_finetuner:
        options["finetuner"] = finetuner
    if args.order == 0:
        options |= frequency_options(args.rows, options.get("finetuner"), blocks, [dataset])
    return kind(blocks, **options)  # type: ignore[no-any-return]


def probes_of(args: ZOTrainingArguments) -> int:
    """Returns the probes of a usual step and micro-batch."""
    estimator = Estimator(args.directions, args.sides, args.normalise)
    return int(METHODS[args.method].forwards_on(estimator, dict(args.method_options or {})))


def finetuner_of(given: Any, args: ZOTrainingArguments) -> FineTuner:
    """Returns the fine-tuner that a trainer was given.

    Args:
        given: A `FineTuner`, its folder or hub id; None for that of the arguments.
        args: The arguments.

    Raises:
        InputError: There is none, or it cannot be loaded.
    """
    given = args.finetuner if given is None else given
    if not given:
        raise input_error(
            "finetuner",
            f"method {args.method!r} needs a fine-tuner",
            None,
            "give its folder or hub id",
        )
    if isinstance(given, str | Path):
        from zopeft.finetuner import FineTuner

        given = FineTuner.from_pretrained(str(given))
    found: FineTuner = given
    return found


def first_batch(trainer: Any) -> dict[str, Any]:
    """Returns the batch that training begins with, leaving all generators as they were."""
    with torch.random.fork_rng(devices=[]):
        loader: Any = trainer.get_train_dataloader()
        if isinstance(loader.dataset, IterableDataset):
            options: dict[str, Any] = {"batch_size": trainer._train_batch_size}
        else:
            options = {"batch_sampler": loader.batch_sampler}
        plain = DataLoader(loader.dataset, collate_fn=loader.collate_fn, **options)
        return dict(next(iter(plain)))
