"""WSC (Winograd schemas): does the pronoun refer to the noun."""

from __future__ import annotations

from zopeft.tasks.superglue import superglue
from zopeft.tasks.task import Example, Row, Task, text
from zopeft.tasks.values import label


def build(row: Row) -> Example:
    """``<text> ... does the pronoun "<span2>" refer to <span1>?`` No / Yes."""
    noun, pronoun = text(row, "span1_text"), text(row, "span2_text").lower()
    prompt = (
        f"{text(row, 'text')}\nIn the previous sentence, does the pronoun "
        f'"{pronoun}" refer to {noun}? Yes or No?\n'
    )
    return Example(prompt, ("No", "Yes"), label(row, 2))


TASK = Task(
    name="wsc",
    hub=superglue("wsc.fixed"),
    columns=("text", "span1_text", "span2_text", "label"),
    kind="choice",
    metric="accuracy",
    loss="answer",
    build=build,
)
