"""The model of a run: loaded once, put back to its start before every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zopeft.jobs.bench.cells import Cell
from zopeft.jobs.build import load_base, load_rows, load_task, on_embedded, start_adapter, wrap
from zopeft.jobs.progress import ignore
from zopeft.models.quiet import quiet
from zopeft.recipe.schema import BARE, Recipe

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.models import ModelSource

KEEP = 1 << 27
"""Trained elements up to which a copy of the start is kept (512 MB of fp32); a model with
more is loaded again for every run."""


@dataclass(frozen=True)
class Body:
    """What a run works on.

    Attributes:
        blocks: What is trained, at its start; ``blocks.model`` is the model.
        tokenizer: The model's tokenizer.
        source: Where the model came from.
        task: The task.
        train: The encoded training examples of the run's seed.
        validation: The validation rows, the same for all seeds.
        length: Longest example in tokens.
    """

    blocks: Blocks
    tokenizer: Any
    source: ModelSource
    task: Any
    train: Any
    validation: list[dict[str, Any]]
    length: int


class Bodies:
    """Gives the body of each run; one model at a time is held.

    An adapter's start depends on the seed, so another seed means another start.
    """

    def __init__(self) -> None:
        self._model_key: Any = None
        self._loaded: tuple[Blocks, Any, ModelSource] | None = None
        self._start: list[Tensor] | None = None
        self._data: dict[Any, Any] = {}

    def get(self, cell: Cell, seed: int) -> Body:
        """Returns the body of a run, its weights at their start.

        Args:
            cell: Model, task and space.
            seed: The run's seed: of the adapter's start and of the draw of training rows.

        Raises:
            InputError: The model, the adapter or the data cannot be used.
        """
        from zopeft.tasks import Collator
        from zopeft.tasks.table import table_rows

        recipe = replace(cell.recipe, training=replace(cell.recipe.training, seed=seed))
        blocks, tokenizer, source = self._model(recipe)
        key = (cell.model, cell.space, cell.task, cell.digest, seed)
        if key not in self._data:
            # One model's data at a time; a seed's rows are wanted again by every entry.
            self._data = {k: v for k, v in self._data.items() if k[:4] == key[:4]}
            self._data[key] = _data(recipe, blocks, tokenizer, on_embedded(source))
        body = Body(blocks, tokenizer, source, *self._data[key])
        collate = Collator(tokenizer, table_rows(blocks.model))
        start_adapter(recipe, blocks, body.train, collate)
        return body

    def _model(self, recipe: Recipe) -> tuple[Blocks, Any, ModelSource]:
        """Returns blocks at their start, the tokenizer and where the model came from."""
        adapter = recipe.peft.name not in BARE
        key = (recipe.model, str(recipe.peft), recipe.training.seed if adapter else None)
        if key == self._model_key and self._loaded is not None and self._start is not None:
            _restore(self._loaded[0], self._start)
            return self._loaded
        self._model_key = self._loaded = self._start = None
        with quiet():
            model, tokenizer, source = load_base(recipe, ignore)
            blocks = wrap(recipe, model)
        self._model_key = key
        self._loaded = blocks, tokenizer, source
        if sum(blocks.numels) <= KEEP and blocks.space != "scales":
            self._start = [p.detach().clone() for p in _parameters(blocks)]
        return self._loaded


def _parameters(blocks: Blocks) -> list[Tensor]:
    """Returns the tensors that hold the blocks, each once."""
    return list({id(block.parameter): block.parameter for block in blocks}.values())


@torch.no_grad()
def _restore(blocks: Blocks, start: list[Tensor]) -> None:
    for parameter, first in zip(_parameters(blocks), start, strict=True):
        # A tensor of its own: an earlier run's method may hold views of the old one.
        parameter.data = first.clone()
        parameter.grad = None


def _data(recipe: Recipe, blocks: Blocks, tokenizer: Any, embedded: bool) -> tuple[Any, ...]:
    from zopeft.tasks import Collator, TaskDataset
    from zopeft.tasks.evaluation import fit_length
    from zopeft.tasks.logits import try_padding
    from zopeft.tasks.table import table_rows

    task = load_task(recipe.task.name, recipe.task.loss)
    length, known = fit_length(blocks.model, recipe.task.max_length), table_rows(blocks.model)
    rows = load_rows(recipe, task, "train", embedded)
    train = TaskDataset(task, rows, tokenizer, length, table_rows=known)
    try_padding(blocks.model, train.encoded, Collator(tokenizer, known).pad)
    return task, train, load_rows(recipe, task, "validation", embedded), length


def batches(body: Body, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Yields training batches without end, on the model's device.

    The order depends on the seed and the number of rows alone, so that all entries see
    the same batches. An epoch is a permutation; its last batch may be smaller.

    Args:
        body: The run's model and data.
        size: Examples a batch.
        seed: The run's seed.
    """
    from zopeft.tasks import Collator
    from zopeft.tasks.table import table_rows

    model: Any = body.blocks.model
    collate, device = Collator(body.tokenizer, table_rows(model)), model.device
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(body.train), generator=generator).tolist()
        for first in range(0, len(order), size):
            batch = collate([body.train[index] for index in order[first : first + size]])
            yield {name: tensor.to(device) for name, tensor in batch.items()}
