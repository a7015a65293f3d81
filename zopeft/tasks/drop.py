"""DROP: a question on a passage that needs counting or arithmetic.

Scored as MeZO does, with SQuAD's F1 against each span on its own. DROP's official metric
aligns several spans as a bag and asks that numbers agree exactly; on questions with one
span, nine tenths of the data, the two differ in the numbers alone.
"""

from __future__ import annotations

from zopeft.tasks.squad import spans
from zopeft.tasks.task import Example, HubSource, Row, Task, text


def build(row: Row) -> Example:
    """``Passage: / Question: / Answer:`` <first span><newline>."""
    question = text(row, "question").strip()
    prompt = f"Passage: {text(row, 'passage')}\nQuestion: {question}\nAnswer:"
    return Example(prompt, answers=spans(row["answers_spans"], "answers_spans", "spans"))


TASK = Task(
    name="drop",
    hub=HubSource("ucinlp/drop"),
    columns=("passage", "question", "answers_spans"),
    kind="answer",
    metric="f1",
    loss="answer",
    build=build,
)
