"""SST-2: the sentiment of a sentence from a film review."""

from __future__ import annotations

from zopeft.tasks.task import Example, HubSource, Row, Task, text
from zopeft.tasks.values import label


def build(row: Row) -> Example:
    """``<sentence> It was`` terrible / great."""
    sentence = text(row, "sentence").strip()
    return Example(f"{sentence} It was", (" terrible", " great"), label(row, 2))


TASK = Task(
    name="sst2",
    hub=HubSource("nyu-mll/glue", "sst2"),
    columns=("sentence", "label"),
    kind="choice",
    metric="accuracy",
    loss="answer",
    build=build,
)
