"""meta_train: from a base model and some tasks to a fine-tuner."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from zopeft.blocks import Blocks, discover
from zopeft.blocks.offloaded import refuse_offloaded
from zopeft.errors import input_error
from zopeft.finetuner import PAPER_FEATURES, FineTuner
from zopeft.meta.batches import TaskBatches
from zopeft.meta.paper_trainer import PaperTrainer, Progress
from zopeft.meta.sensitivity import sensitive_mask
from zopeft.meta.settings import MetaSettings
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.state_trainer import StateTrainer
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss
from zopeft.tasks.frequency import count_tokens
from zopeft.tasks.logits import try_padding
from zopeft.tasks.sampling import draw_labels
from zopeft.tasks.table import table_rows

MASK_BATCHES = 64
"""Batches, at most, whose squared gradients a mask is made of."""


def meta_train(
    model: nn.Module,
    tasks: Sequence[str] = ("copa",),
    tokenizer: Any = None,
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    data: str | Path | None = None,
    train_examples: int | None = None,
    max_length: int = 512,
    blocks: Blocks | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> FineTuner:
    """Learns a fine-tuner for a base model; the model's weights come out as they went in.

    Args:
        model: A causal LM, or a PeftModel to learn scales of its adapter.
        tasks: Names of tasks, or paths of task files.
        tokenizer: The model's tokenizer; by default loaded from where the model came from.
        rows: Training rows of each task, already loaded.
        data: A folder with the task's columns; for several tasks, one folder a task in it.
            By default the hub.
        train_examples: Examples to use of each task; by default all.
        max_length: Longest sequence in tokens.
        blocks: The blocks to learn scales for; by default those `discover` finds.
        progress: Called after each meta-step with its number, their total and a dict of
            figures: task, loss, gradient_norm, and the objective's own.
        **settings: Fields of `MetaSettings`.

    Returns:
        The trained `FineTuner`; ``save_pretrained(folder)`` writes it.

    Raises:
        InputError: A task, a setting or the data is wrong.
        RunError: The loss was not finite for some steps in a row.
    """
    checked = MetaSettings.of(**settings)
    if not tasks:
        raise input_error("meta_train tasks", "at least one task is needed", "none")
    blocks = discover(model) if blocks is None else blocks
    checked = checked.decided(blocks.space)
    refuse_offloaded(blocks, "meta_train")
    if tokenizer is None:
        tokenizer = _tokenizer_of(blocks)
    known = table_rows(model)
    datasets, collate = {}, Collator(tokenizer, known)
    for name in tasks:
        task = load_task(name)
        found = (
            rows[name]
            if rows is not None
            else load_rows(
                task, "train", _folder(data, name, len(tasks)), False, train_examples, checked.seed
            )
        )
        datasets[task.name] = TaskDataset(task, found, tokenizer, max_length, table_rows=known)
        try_padding(model, datasets[task.name].encoded, collate.pad)
    device = blocks[0].parameter.device
    batches = TaskBatches(datasets, collate, checked.batch_size, checked.seed, device)
    moving = checked.policy == "state"
    finetuner = FineTuner.initial(
        blocks,
        hidden=checked.hidden,
        features=checked.features if moving else PAPER_FEATURES,
        output="bounded" if moving else "absolute",
        sharing=checked.sharing,
        normalise=checked.normalise,
        seed=checked.seed,
        capacity=checked.capacity,
        rank=checked.rank,
        mix=checked.mix,
        rows=checked.token_rows,
    )
    start = finetuner.copy()
    begun = time.perf_counter()
    trainer: PaperTrainer | SignalTrainer
    if checked.objective == "paper":
        trainer = PaperTrainer(model, batches, task_loss, checked, blocks, finetuner)
    else:
        counts = count_tokens(datasets.values()) if checked.token_rows == "frequency" else None
        common = (model, batches, task_loss, draw_labels, checked, blocks, finetuner)
        if moving:
            trainer = StateTrainer(*common, sorted(datasets), counts)
        else:
            trainer = SignalTrainer(*common, counts)
    scores = trainer.train(progress)
    losses = [row["loss"] for row in trainer.history]
    if checked.mask:
        pairs = islice(iter(batches), min(checked.steps, MASK_BATCHES))
        own = (batch for _, batch in pairs)
        finetuner.mask = sensitive_mask(model, own, checked.mask, task_loss, blocks)
        scores = {**scores, "mask": repr(finetuner.mask)}
    finetuner.config.training = {
        "objective": checked.objective,
        "tasks": sorted(datasets),
        "settings": asdict(checked),
        "seconds": round(time.perf_counter() - begun, 1),
        "steps_made": len(losses),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "distance_from_start": float(finetuner.distance(start)["total"]),
        **scores,
    }
    return finetuner


def _folder(data: str | Path | None, task: str, count: int) -> Path | None:
    if data is None:
        return None
    folder = Path(data)
    return folder / Path(task).stem if count > 1 else folder


def _tokenizer_of(blocks: Blocks) -> Any:
    from zopeft.models import ModelSource
    from zopeft.models.loading import load_tokenizer

    if not blocks.base_name:
        raise input_error(
            "meta_train tokenizer",
            "the model does not say where it came from",
            None,
            "pass tokenizer=",
        )
    return load_tokenizer(ModelSource(blocks.base_name, local=Path(blocks.base_name).is_dir()))
