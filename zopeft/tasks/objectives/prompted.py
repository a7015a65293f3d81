"""Prompts to be continued: rows of data as token ids, with all that a score may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from zopeft.errors import InputError, input_error
from zopeft.tasks.chat import has_template
from zopeft.tasks.conversation import turns
from zopeft.tasks.dataset import place_of
from zopeft.tasks.own_encoding import OwnEncoder, encode_openings
from zopeft.tasks.table import check_ids, padding_id
from zopeft.tasks.task import AnyExample, Conversation, Example, Row, RowError, Task
from zopeft.tasks.template import Ids

PROMPTED = "prompted"
"""The key of a batch that holds its `Prompted` rows."""
LEFT_OUT = ("prompt", "completion", "completion_ids")
"""Columns that a reward is not given: they would stand in the way of what it is given."""


@dataclass(frozen=True)
class Prompted:
    """One prompt.

    Attributes:
        ids: Its token ids.
        prompt: Its text, or the turns of a conversation.
        answers: Accepted answers; none where a reward alone tells.
        row: The row's columns.
        place: Where the row stands, for messages.
    """

    ids: Ids
    prompt: str | list[dict[str, Any]]
    answers: tuple[str, ...]
    row: Row
    place: str

    def completion(self, text: str) -> str | list[dict[str, Any]]:
        """Returns what was generated in the form of the prompt: text, or one turn."""
        return text if isinstance(self.prompt, str) else [{"role": "assistant", "content": text}]


class PromptDataset(Dataset[Prompted]):
    """The rows of a task as prompts, encoded once.

    Args:
        task: The task.
        rows: Rows in the hub's columns.
        tokenizer: A Hugging Face tokenizer.
        max_length: Most tokens of a prompt and its answer; longer prompts are cut from their left.
        max_new_tokens: Most tokens of an answer.
        table_rows: Rows of the model's embedding; None doesn't check that it has the tokens.

    Raises:
        InputError: A faulty row, or a token that the embedding does not have.
    """

    def __init__(
        self,
        task: Task,
        rows: Sequence[Row],
        tokenizer: Any,
        max_length: int,
        max_new_tokens: int,
        table_rows: int | None = None,
    ) -> None:
        place = place_of(task, rows)
        examples: list[AnyExample] = []
        for index, row in enumerate(rows):
            try:
                examples.append(task.example(row))
            except RowError as error:
                raise InputError(f"{place(index)}: {error}") from error
        room = max(1, max_length - max_new_tokens)
        openings = encode_openings(tokenizer, examples, room, place)
        self.encoded = [
            Prompted(
                tuple(ids),
                _shown(example, tokenizer),
                () if task.kind == "prompt" else answers_of(example),
                row,
                place(index),
            )
            for index, (ids, example, row) in enumerate(zip(openings, examples, rows, strict=True))
        ]
        check_ids(tokenizer, openings, table_rows, place)

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Prompted:
        return self.encoded[index]


def answers_of(example: AnyExample) -> tuple[str, ...]:
    """Returns the accepted answers; of a classification the right option."""
    if isinstance(example, Example) and example.choices is not None:
        return (example.choices[example.label or 0],)
    return example.answers


def _shown(example: AnyExample, tokenizer: Any) -> str | list[dict[str, Any]]:
    if isinstance(example, Conversation) and (example.plain is None or has_template(tokenizer)):
        return [dict(turn) for turn in example.messages[: example.last]]
    found = example.plain if isinstance(example, Conversation) else example
    assert isinstance(found, Example)
    return found.prompt


def prompted_rows(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], max_length: int, max_new_tokens: int
) -> list[Prompted]:
    """Returns rows with a ``prompt``, text or turns, as prompts; ``answer`` or ``answers`` count.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rows: The rows.
        max_length: Most tokens of a prompt and its answer.
        max_new_tokens: Most tokens of an answer.

    Raises:
        InputError: A row has no prompt, or none that can be encoded.
    """
    encoder = OwnEncoder(tokenizer, max(1, max_length - max_new_tokens))
    found = []
    for number, row in enumerate(rows, 1):
        place = f"row {number}"
        prompt = row.get("prompt")
        try:
            if isinstance(prompt, str) and prompt:
                ids = encoder.opening(Example(prompt))
            elif isinstance(prompt, list | tuple):
                messages = [*turns(prompt, "prompt"), {"role": "assistant", "content": "."}]
                ids = encoder.opening(Conversation(tuple(messages)))
                prompt = [dict(turn) for turn in messages[:-1]]
            else:
                raise input_error(place, "needs a prompt, text or turns", str(prompt))
        except RowError as error:
            raise InputError(f"{place}: {error}") from error
        given = row.get("answers", row.get("answer", ()))
        answers = (given,) if isinstance(given, str) else tuple(map(str, given or ()))
        found.append(Prompted(tuple(ids), prompt, answers, row, place))
    return found


class PromptCollator:
    """Makes batches of prompts, padded on the left, with their rows.

    Args:
        tokenizer: Its padding token is used, or another: what is padded is known by the mask.
        table_rows: Rows of the model's embedding; a padding token outside is passed over.
    """

    def __init__(self, tokenizer: Any, table_rows: int | None = None) -> None:
        self.pad = padding_id(tokenizer, table_rows)

    def __call__(self, examples: Sequence[Prompted]) -> dict[str, Any]:
        """Returns the batch: ``input_ids`` and ``attention_mask`` [B, T], and the rows."""
        width = max(len(one.ids) for one in examples)
        ids = [[self.pad] * (width - len(one.ids)) + list(one.ids) for one in examples]
        mask = [[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in examples]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            PROMPTED: list(examples),
        }
