"""SQuAD: a question on a passage, answered in the passage's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zopeft.tasks.task import Example, HubSource, Row, RowError, Task, text
from zopeft.tasks.values import words


def spans(value: Any, column: str, key: str) -> tuple[str, ...]:
    """Returns the answers in a column like ``{"text": [...]}``, each as it is taught.

    Raises:
        RowError: The column has another shape, or no answer.
    """
    found = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        raise RowError(f"column {column!r} must hold {{{key!r}: [texts]}}, got {value!r:.80}")
    answers = tuple(f" {one.strip()}\n" for one in found if one.strip())
    if not answers:
        raise RowError(f"column {column!r} holds no answer")
    return answers


def build(row: Row) -> Example:
    """``Title: / Context: / Question: / Answer:`` <first answer><newline>."""
    question = text(row, "question").strip()
    title, context = words(row["title"], "title"), text(row, "context")
    prompt = f"Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:"
    return Example(prompt, answers=spans(row["answers"], "answers", "text"))


TASK = Task(
    name="squad",
    hub=HubSource("rajpurkar/squad"),
    columns=("title", "context", "question", "answers"),
    kind="answer",
    metric="f1",
    loss="answer",
    build=build,
)
