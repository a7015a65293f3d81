"""meta_train: from a base model and some tasks to a fine-tuner."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import ConcatDataset

from zopeft.blocks import Blocks, discover
from zopeft.blocks.offloaded import device_of, refuse_offloaded
from zopeft.blocks.shards import refuse_sharded
from zopeft.errors import input_error
from zopeft.finetuner import PAPER_FEATURES, FineTuner
from zopeft.meta.batches import TaskBatches
from zopeft.meta.forward_trainer import ForwardTrainer
from zopeft.meta.paper_trainer import PaperTrainer, Progress
from zopeft.meta.parts import Parting, part_labels, part_loss
from zopeft.meta.sensitivity import sensitive_mask
from zopeft.meta.settings import MetaSettings
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.state_trainer import StateTrainer
from zopeft.ranks import Ranks, begin
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss
from zopeft.tasks.frequency import count_tokens
from zopeft.tasks.logits import try_padding
from zopeft.tasks.sampling import draw_labels
from zopeft.tasks.table import table_rows
from zopeft.training.likeness import check_likeness

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
    ranks: Ranks | None = None,
    **settings: Any,
) -> FineTuner:
    """Learns a fine-tuner for a base model; the model's weights come out as they went in.

    Processes that were started together (torchrun) share out the rows of each batch. All of them
    call this alike, and are given what one process would have learned, up to rounding.

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
        ranks: The processes that learn together; None for those that this one was started with,
            `zopeft.ranks.ALONE` for this one alone.
        **settings: Fields of `MetaSettings`.

    Returns:
        The trained `FineTuner`; ``save_pretrained(folder)`` writes it.

    Raises:
        InputError: A task, a setting or the data is wrong, or another process has others.
        RunError: The loss was not finite for some steps in a row, or a process is missing.
    """
    ranks = begin() if ranks is None else ranks
    with ranks.afresh():
        with ranks.gate():
            checked = MetaSettings.of(**settings)
            if not tasks:
                raise input_error("meta_train tasks", "at least one task is needed", "none")
            blocks = discover(model) if blocks is None else blocks
            checked = checked.decided(blocks.space)
            if checked.gradients == "backward":
                refuse_offloaded(blocks, "meta_train")
            elif ranks.several:
                do = "start one process, or set meta.gradients to backward"
                what = "forward passes alone are one process's to make"
                raise input_error("meta_train", what, ranks.count, do)
            refuse_sharded(model, "meta_train")
            if tokenizer is None:
                tokenizer = _tokenizer_of(blocks)
            given = (tokenizer, rows, data, train_examples, max_length)
            datasets, collate = _encoded(model, tasks, *given, checked.seed)
        every: Any = ConcatDataset(list(datasets.values()))
        told = {"tasks": ", ".join(datasets), **{k: str(v) for k, v in asdict(checked).items()}}
        check_likeness(ranks, model, blocks, every, told)
        return _learned(model, blocks, datasets, collate, checked, progress, ranks)


def _learned(
    model: nn.Module,
    blocks: Blocks,
    datasets: Mapping[str, TaskDataset],
    collate: Collator,
    checked: MetaSettings,
    progress: Progress | None,
    ranks: Ranks,
) -> FineTuner:
    """Learns a fine-tuner on encoded examples."""
    device = device_of(model)
    parting = Parting(collate, ranks) if ranks.several else collate
    batches = TaskBatches(datasets, parting, checked.batch_size, checked.seed, device)
    loss = part_loss if ranks.several else task_loss
    finetuner = _initial(blocks, checked)
    start = finetuner.copy()
    begun = time.perf_counter()
    trainer: PaperTrainer | SignalTrainer | ForwardTrainer
    if checked.objective == "paper":
        trainer = PaperTrainer(model, batches, loss, checked, blocks, finetuner, ranks)
    else:
        counts = count_tokens(datasets.values()) if checked.token_rows == "frequency" else None
        draw = part_labels if ranks.several else draw_labels
        common = (model, batches, loss, draw, checked, blocks, finetuner)
        if checked.gradients == "forward":
            trainer = ForwardTrainer(model, batches, loss, checked, blocks, finetuner, counts)
        elif checked.policy == "state":
            trainer = StateTrainer(*common, sorted(datasets), counts, ranks)
        else:
            trainer = SignalTrainer(*common, counts, ranks)
    scores = trainer.train(progress)
    losses = [row["loss"] for row in trainer.history]
    if checked.mask:
        pairs = islice(iter(batches), min(checked.steps, MASK_BATCHES))
        own = (batch for _, batch in pairs)
        finetuner.mask = sensitive_mask(model, own, checked.mask, loss, blocks, ranks)
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
    return _of_the_first(ranks, finetuner)


def _initial(blocks: Blocks, checked: MetaSettings) -> FineTuner:
    """Returns the fine-tuner to train."""
    moving = checked.policy == "state"
    return FineTuner.initial(
        blocks,
        hidden=checked.hidden,
        features=checked.features if moving else PAPER_FEATURES,
        output="bounded" if moving else "absolute",
        sharing=checked.sharing,
        normalise=checked.normalise,
        seed=checked.seed,
        capacity=checked.capacity,
        rank=checked.directions,
        mix=checked.mix,
        rows=checked.token_rows,
    )


def _encoded(
    model: nn.Module,
    tasks: Sequence[str],
    tokenizer: Any,
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    data: str | Path | None,
    train_examples: int | None,
    max_length: int,
    seed: int,
) -> tuple[dict[str, TaskDataset], Collator]:
    """Returns the encoded examples of each task, and what makes batches of them."""
    known = table_rows(model)
    datasets, collate = {}, Collator(tokenizer, known)
    for name in tasks:
        task = load_task(name)
        if rows is not None:
            found = rows[name]
        else:
            folder = _folder(data, name, len(tasks))
            found = load_rows(task, "train", folder, False, train_examples, seed)
        datasets[task.name] = TaskDataset(task, found, tokenizer, max_length, table_rows=known)
        try_padding(model, datasets[task.name].encoded, collate.pad)
    return datasets, collate


def _of_the_first(ranks: Ranks, finetuner: FineTuner) -> FineTuner:
    """Returns what the first rank has learned."""
    if not ranks.several:
        return finetuner
    own = (finetuner.config, finetuner.nets.cpu(), finetuner.bases, finetuner.mask)
    return FineTuner(*ranks.said(own))


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
