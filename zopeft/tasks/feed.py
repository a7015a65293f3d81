"""Feed: the batches of a task's rows that a model is scored on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zopeft.blocks.offloaded import device_of
from zopeft.probing.packed import laid_out
from zopeft.probing.trial import known_choice
from zopeft.tasks.dataset import Collator, TaskDataset
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.logits import try_padding
from zopeft.tasks.loss import task_loss
from zopeft.tasks.table import table_rows
from zopeft.tasks.task import Task


class Feed:
    """The rows of a task as batches for a model, which has been tried on them.

    Args:
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        task: The task.
        rows: Rows in the hub's columns.
        length: Most tokens of a text.
        loss: "choice" or "answer"; None for the task's own.
        layout: "auto", "packed" or "padded", see `zopeft.BatchLoss`. The model is tried out on
            the longest and the shortest example, unless it is known.
        encoded: The rows as `zopeft.tasks.evaluation.check_rows` encodes them, where they are
            at hand; None encodes them.

    Attributes:
        data: The rows as token ids.

    Raises:
        InputError: A row that can't be encoded, or "packed" for a model that can't be.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        rows: Sequence[Mapping[str, Any]],
        length: int,
        loss: str | None = None,
        layout: str = "auto",
        encoded: TaskDataset | None = None,
    ) -> None:
        known = table_rows(model)
        self.model = model
        if encoded is None:
            encoded = TaskDataset(task, rows, tokenizer, length, loss, known)
        self.data = encoded.encoded
        self.collate = Collator(tokenizer, known)
        try_padding(model, self.data, self.collate.pad)
        by_size = sorted(self.data, key=len)
        trial = self._moved([by_size[-1], by_size[0]])
        self._way = known_choice(model, trial, task_loss, layout).way

    def batches(self, size: int) -> Iterator[tuple[list[int], list[Encoded], Mapping[str, Any]]]:
        """Yields batches of examples of like size, the longest first.

        Args:
            size: Examples of a batch.

        Yields:
            The examples' indices, the examples, and their batch on the model's device.
        """
        order = sorted(range(len(self.data)), key=lambda index: -len(self.data[index]))
        for first in range(0, len(order), max(1, size)):
            chosen = order[first : first + max(1, size)]
            group = [self.data[index] for index in chosen]
            batch = laid_out(self.model, self._moved(group), task_loss, self._way)
            yield chosen, group, batch

    def _moved(self, group: Sequence[Encoded]) -> dict[str, Any]:
        device = device_of(self.model)
        return {name: tensor.to(device) for name, tensor in self.collate(group).items()}
