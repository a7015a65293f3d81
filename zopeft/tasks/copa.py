"""COPA: the likelier cause or effect of a premise."""

from __future__ import annotations

from zopeft.tasks.superglue import superglue
from zopeft.tasks.task import Example, Row, RowError, Task, text
from zopeft.tasks.values import label

_WORDS = {"effect": "so", "cause": "because"}


def _lower(choice: str) -> str:
    """The choice as the rest of a sentence: its first word in lower case, but for ``I``."""
    first, *rest = choice.split(" ")
    return " ".join([first if first == "I" else first.lower(), *rest]).strip(" ")


def build(row: Row) -> Example:
    """``<premise without its full stop> so / because`` <choice>."""
    question = row["question"]
    if question not in _WORDS:
        raise RowError(f"column 'question' must be 'cause' or 'effect', got {question!r}")
    premise = text(row, "premise").rstrip()
    premise = premise[:-1] if premise.endswith(".") else premise
    choices = tuple(" " + _lower(text(row, f"choice{i}")) for i in (1, 2))
    return Example(f"{premise} {_WORDS[question]}", choices, label(row, 2))


TASK = Task(
    name="copa",
    hub=superglue("copa"),
    columns=("premise", "choice1", "choice2", "question", "label"),
    kind="choice",
    metric="accuracy",
    loss="answer",
    build=build,
)
