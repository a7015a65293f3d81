"""Endless batches of the meta-training tasks, in an order that the seed fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from zopeft.errors import input_error
from zopeft.meta.parts import Part, moved

Batch = dict[str, Any] | Part


class TaskBatches:
    """One batch of each task in turn, tasks shuffled in every round.

    Args:
        datasets: Task name to its dataset of encoded examples.
        collate: From a list of examples to a batch, or to a rank's part of it.
        batch_size: Examples a batch.
        seed: Seed of the order.
        device: Where tensors of a batch go.

    Raises:
        InputError: A task has no example.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset[Any]],
        collate: Callable[[Sequence[Any]], Batch],
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        for name, dataset in datasets.items():
            if len(dataset) == 0:  # type: ignore[arg-type]
                raise input_error(f"task {name}", "has no training examples", 0)
        self.datasets, self.collate = dict(datasets), collate
        self.batch_size, self.device = batch_size, device
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        """Yields (task name, batch) without end."""
        orders: dict[str, list[int]] = {name: [] for name in self.datasets}
        names = list(self.datasets)
        while True:
            for place in torch.randperm(len(names), generator=self._generator).tolist():
                name = names[place]
                yield name, self._batch(name, orders[name])

    def _batch(self, name: str, order: list[int]) -> Batch:
        dataset: Any = self.datasets[name]
        while len(order) < min(self.batch_size, len(dataset)):
            order.extend(torch.randperm(len(dataset), generator=self._generator).tolist())
        picked = [order.pop(0) for _ in range(min(self.batch_size, len(dataset)))]
        batch = self.collate([dataset[i] for i in picked])
        return batch.to(self.device) if isinstance(batch, Part) else moved(batch, self.device)
