"""What a recipe may say about own data: ``task.data`` without the name of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from zopeft.recipe.fields import named, number


@dataclass(frozen=True)
class DataSection:
    """How own data is read, and what is made of it.

    Attributes:
        mixture: Several files, folders or hub ids in place of ``task.data``, each with its
            weight; null for what its rows are of what the others leave.
        kind: What the rows are; None asks their columns.
        split: The split to train on (of eval: to score on); None takes "train", or the only
            one there is. The one key here that also goes with a task by name.
        validation: A file or folder with the rows to score on, or the name of a split; None
            takes the split of that name, or holds rows out.
        held_out: Share of the rows that is held out then, at most 500 rows.
        streaming: Read and encode rows as they are needed, for data that does not fit in memory.
        shuffle_buffer: Rows that are held then, from which the next one is drawn; 1 leaves the
            order as it is. What has to look at rows before a run looks at the first so many.
        columns: Names of columns as kinds of data know them, to their names in the data.
        labels: Names of the classes, in the order of their numbers.
        system: A system prompt for rows that have none.
        template: Chat template: "plain", or a file; None takes the tokenizer's own.
        template_options: Further variables of the template (``enable_thinking``, ...).
        metric: How answers are scored; None takes the kind's own, which for answers of any
            length is perplexity: "f1" and "accuracy" generate them.
        stop: Text that ends an answer; None takes the end token.
        max_new_tokens: Longest generated answer in tokens; None takes the kind's own.
    """

    mixture: dict[str, Any] = field(default_factory=dict)
    kind: str | None = named(None, "kind")
    split: str | None = None
    validation: str | None = None
    held_out: float = number(0.1, above=0.0, most=0.9)
    streaming: bool = False
    shuffle_buffer: int = number(1000, least=1)
    columns: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    system: str | None = None
    template: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    metric: Literal["accuracy", "f1", "perplexity"] | None = None
    stop: str | None = None
    max_new_tokens: int | None = number(None, least=1)
