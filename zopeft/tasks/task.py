"""Task: how a row of data becomes a prompt, and how its answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zopeft.errors import ZopeftError

if TYPE_CHECKING:
    from zopeft.tasks.own_task import Own

Row = Mapping[str, Any]


class RowError(ZopeftError, ValueError):
    """A row that a task can't use; whoever read the row adds where it stands."""

    exit_code = 2


@dataclass(frozen=True)
class Example:
    """One row as text; what is scored or taught is the prompt followed by a choice or answer.

    Attributes:
        prompt: The text before the answer, without trailing spaces.
        choices: The options of a classification, each with its leading space if the
            prompt does not end in a newline; None for a free answer.
        label: Index of the right choice; None for a free answer.
        answers: The accepted free answers, the first is the one that is taught; each
            with its leading space and its final newline. Empty for a classification.
        ends: Whether the tokenizer's end token follows the answer and is taught with it; such
            an answer stands behind its prompt as it is, and may be cut at its end.
    """

    prompt: str
    choices: tuple[str, ...] | None = None
    label: int | None = None
    answers: tuple[str, ...] = ()
    ends: bool = False


@dataclass(frozen=True)
class Passage:
    """One row of running text; all of it is taught, and the end token after it.

    Attributes:
        text: The text.
    """

    text: str
    answers: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Conversation:
    """One row of turns, put into text by the tokenizer's chat template.

    Taught are the assistant's turns, each with the token that ends it.

    Attributes:
        messages: Turns with ``role`` and ``content``, in order; at least one assistant's.
        tools: What the template is told of tools, if the row has any.
        options: Further variables for the template.
        plain: The same row as a prompt and its answer, for tokenizers without a template.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: Example | None = None

    @property
    def last(self) -> int:
        """The place of the last turn of the assistant's."""
        return max(k for k, turn in enumerate(self.messages) if turn["role"] == "assistant")

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says last."""
        return (str(self.messages[self.last].get("content") or ""),)


AnyExample = Example | Passage | Conversation
"""What a row can become."""


@dataclass(frozen=True)
class HubSource:
    """Where a task's data is on the hub.

    Attributes:
        path: Hub id of the dataset.
        config: Its configuration, if it has several.
        revision: The pinned commit, where one is known to hold Parquet files.
        splits: Our names of the splits to the hub's.
    """

    path: str
    config: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )


@dataclass(frozen=True)
class Task:
    """A task: its data, prompt, loss and metric.

    Attributes:
        name: Its name in the registry, or in its YAML file.
        columns: The columns that a row must have. Where several are accepted they stand
            in one string, as in "label|answer".
        kind: "choice" is scored by comparing options, "answer" by generating text, "text" by
            the loss alone; "prompt" by a reward of one's own.
        metric: "accuracy", "f1" (with exact match beside it), "perplexity", or "reward".
        loss: "answer" trains on the tokens of the right text; "choice" on the scores of
            all options, as MeZO does for classification.
        build: Row to `Example`, `Passage` or `Conversation`; raises `RowError`.
        hub: Where the data is on the hub; None for local data alone.
        data: A folder with the data, if the task brings its own.
        max_new_tokens: Longest generated answer in tokens.
        stop: Text that ends a generated answer; None where only an end token does.
        own: The user's own data that the task was made of, if it was.
        about: A line for lists.
    """

    name: str
    columns: tuple[str, ...]
    kind: Literal["choice", "answer", "text", "prompt"]
    metric: Literal["accuracy", "f1", "perplexity", "reward"]
    loss: Literal["choice", "answer"]
    build: Callable[[Row], AnyExample]
    hub: HubSource | None = None
    data: Path | None = None
    max_new_tokens: int = 50
    stop: str | None = "\n"
    own: Own | None = None
    about: str = ""

    def missing(self, columns: Any) -> list[str]:
        """Returns the required columns that are not among `columns`."""
        return [c for c in self.columns if not any(name in columns for name in c.split("|"))]

    def example(self, row: Row) -> AnyExample:
        """Returns the row as text: its prompt and answers, its turns, or its passage.

        Raises:
            RowError: A column is missing, has the wrong type, or a label is out of range.
        """
        missing = self.missing(row)
        if missing:
            raise RowError(f"column {missing[0]!r} is missing; {self.name} needs {self.needs}")
        return self.build(row)

    @property
    def needs(self) -> str:
        """The required columns as text: ``passage, question, label or answer``."""
        return ", ".join(column.replace("|", " or ") for column in self.columns)


def text(row: Row, column: str) -> str:
    """Returns a text column.

    Raises:
        RowError: The value is not text, or is empty.
    """
    value = row[column]
    if not isinstance(value, str):
        raise RowError(f"column {column!r} must be text, got {type(value).__name__} {value!r}")
    if not value.strip():
        raise RowError(f"column {column!r} is empty")
    return value
