"""BoolQ: a yes-or-no question on a passage."""

from __future__ import annotations

from zopeft.tasks.superglue import superglue
from zopeft.tasks.task import Example, Row, RowError, Task, text
from zopeft.tasks.values import index, label


def build(row: Row) -> Example:
    """``<passage> <Question>?`` No / Yes.

    The label is SuperGLUE's ``label``, or the ``answer`` (true or false) of the original.
    """
    question = text(row, "question").strip()
    question = question if question.endswith("?") else question + "?"
    if "label" in row:
        right = label(row, 2)
    else:
        found = index(row["answer"], 2)
        if found is None:
            raise RowError(f"column 'answer' must be true or false, got {row['answer']!r}")
        right = found
    prompt = f"{text(row, 'passage')} {question[0].upper()}{question[1:]}\n"
    return Example(prompt, ("No", "Yes"), right)


TASK = Task(
    name="boolq",
    hub=superglue("boolq"),
    columns=("passage", "question", "label|answer"),
    kind="choice",
    metric="accuracy",
    loss="answer",
    build=build,
)
