"""Dataset: encoded examples, and the batches made of them.

Batches are padded on the right. An "answer" batch is what ``model(**batch)`` takes:
``input_ids``, ``attention_mask``, ``labels`` [R, T], the labels -100 outside the answers.

A "choice" batch holds all options of its B examples, R rows in all, and beside the three:

* ``num_options`` [B], ``option_label`` [B]: how many options, and which is right.
* ``predictors`` [U]: places ``row * T + position`` whose logits are needed.
* ``target_predictor``, ``target_token``, ``target_option`` [M]: for every option token,
  the place in ``predictors`` that predicts it, its id, and the option it belongs to.
* ``option_table`` [B, C]: the options of each example, padded with the number of options.

Where all options of an example are single tokens after one prompt ("great" / "terrible",
"Yes" / "No"), the logits of one row score them all: it then takes one row, with the right
option in it, instead of one a choice. The scores are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zopeft.errors import InputError, input_error
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.encoding_cache import EncodingCache
from zopeft.tasks.own_encoding import encode_all, encode_openings
from zopeft.tasks.table import check_ids, padding_id
from zopeft.tasks.task import RowError, Task

IGNORED = -100
"""The label of a token that no loss is taken on."""


class TaskDataset(Dataset[Encoded]):
    """The rows of a task as token ids, encoded once.

    Args:
        task: The task.
        rows: Rows in the hub's columns.
        tokenizer: A Hugging Face tokenizer.
        max_length: Most tokens of a text; longer prompts are cut from their left.
        loss: "choice" or "answer"; None takes the task's own.
        table_rows: Rows of the model's embedding, `zopeft.tasks.table.table_rows`; None
            doesn't check that it has the tokens.

    Attributes:
        encoded: The examples.
        owners: The index of the row that each was made of.

    A row of running text that is longer than `max_length` becomes several examples; a prompt
    alone becomes one that teaches nothing.

    Raises:
        InputError: A faulty row, an answer that doesn't fit, a token that the embedding does
            not have, or loss="choice" for a task without choices.
    """

    def __init__(
        self,
        task: Task,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        max_length: int,
        loss: str | None = None,
        table_rows: int | None = None,
    ) -> None:
        self.task = task
        self.loss = loss or task.loss
        if self.loss not in ("choice", "answer"):
            raise input_error("loss", "must be 'choice' or 'answer'", self.loss)
        if self.loss == "choice" and task.kind != "choice":
            raise input_error("loss", f"{task.name} has no choices", "choice", "use 'answer'")
        place = place_of(task, rows)
        examples = []
        for index, row in enumerate(rows):
            try:
                examples.append(task.example(row))
            except RowError as error:
                raise InputError(f"{place(index)}: {error}") from error
        if task.kind == "prompt":
            room = max(1, max_length - task.max_new_tokens)
            openings = encode_openings(tokenizer, examples, room, place)
            self.encoded = [Encoded((tuple(ids),), ((),)) for ids in openings]
            self.owners = list(range(len(openings)))
        else:
            cache = EncodingCache(tokenizer, examples, self.loss, max_length)
            found = cache.read()
            if found is None:
                found = encode_all(tokenizer, examples, self.loss, max_length, place)
                cache.write(*found)
            self.encoded, self.owners = found
        ids = map(_every_id, self.encoded)
        check_ids(tokenizer, ids, table_rows, lambda index: place(self.owners[index]))

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Encoded:
        return self.encoded[index]


def place_of(task: Task, rows: Sequence[Mapping[str, Any]]) -> Callable[[int], str]:
    """Returns what tells where a row stands: its file and line, or its number in the task."""
    return getattr(rows, "place", lambda index: f"{task.name}, row {index + 1}")


class Collator:
    """Makes batches of encoded examples, padded on the right.

    Args:
        tokenizer: Its padding token is used, or its end token, or 0: what is padded is
            known by the mask, never by the id.
        table_rows: Rows of the model's embedding, `zopeft.tasks.table.table_rows`; a padding
            token outside is passed over.
    """

    def __init__(self, tokenizer: Any, table_rows: int | None = None) -> None:
        self.pad = padding_id(tokenizer, table_rows)

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """Returns the batch of `examples`; all must be of one kind."""
        if examples[0].label is None:
            rows = [(e.prompts[0], e.options[0]) for e in examples]
            return self._pad(rows, [e.taught for e in examples])
        return self._choices(examples)

    def _pad(
        self,
        rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
        taught: Sequence[tuple[bool, ...] | None],
    ) -> dict[str, Tensor]:
        length = max(len(prompt) + len(option) for prompt, option in rows)
        ids, mask, labels = [], [], []
        for (prompt, option), marks in zip(rows, taught, strict=True):
            size = len(prompt) + len(option)
            rest = length - size
            ids.append([*prompt, *option, *[self.pad] * rest])
            mask.append([1] * size + [0] * rest)
            kept = marks or (True,) * len(option)
            targets = [t if m else IGNORED for t, m in zip(option, kept, strict=True)]
            labels.append([IGNORED] * len(prompt) + targets + [IGNORED] * rest)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }

    def _choices(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        targets: list[tuple[tuple[int, int], int, int]] = []  # (row, position), token, option
        option = 0
        for example in examples:
            pairs = list(zip(example.prompts, example.options, strict=True))
            shared = example.shared
            row = len(rows)
            rows += [pairs[example.label or 0]] if shared else pairs
            for number, (prompt, tokens) in enumerate(pairs):
                place = row if shared else row + number
                for offset, token in enumerate(tokens):
                    targets.append(((place, len(prompt) - 1 + offset), token, option))
                option += 1
        batch = self._pad(rows, [None] * len(rows))
        length = batch["input_ids"].shape[1]
        slots: dict[tuple[int, int], int] = {}
        for where, _, _ in targets:
            slots.setdefault(where, len(slots))
        counts = [len(example.options) for example in examples]
        batch["num_options"] = torch.tensor(counts)
        batch["option_label"] = torch.tensor([example.label for example in examples])
        batch["predictors"] = torch.tensor([row * length + at for row, at in slots])
        batch["target_predictor"] = torch.tensor([slots[where] for where, _, _ in targets])
        batch["target_token"] = torch.tensor([token for _, token, _ in targets])
        batch["target_option"] = torch.tensor([which for _, _, which in targets])
        batch["option_table"] = _table(counts)
        return batch


def _every_id(one: Encoded) -> set[int]:
    return {token for ids in (*one.prompts, *one.options) for token in ids}


def _table(counts: Sequence[int]) -> Tensor:
    """Numbers the options of each example in a row, the rest filled with their total."""
    total, width = sum(counts), max(counts)
    table, first = [], 0
    for count in counts:
        table.append([*range(first, first + count), *[total] * (width - count)])
        first += count
    return torch.tensor(table)
