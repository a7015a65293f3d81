"""CB (CommitmentBank): does the premise entail the hypothesis."""

from __future__ import annotations

from zopeft.tasks.superglue import superglue
from zopeft.tasks.task import Example, Row, Task, text
from zopeft.tasks.values import label


def build(row: Row) -> Example:
    """``Suppose <premise> Can we infer that "<hypothesis>"?`` Yes / No / Maybe.

    Labels: 0 entailment, 1 contradiction, 2 neutral.
    """
    premise, hypothesis = text(row, "premise"), text(row, "hypothesis")
    prompt = f'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n'
    return Example(prompt, ("Yes", "No", "Maybe"), label(row, 3))


TASK = Task(
    name="cb",
    hub=superglue("cb"),
    columns=("premise", "hypothesis", "label"),
    kind="choice",
    metric="accuracy",
    loss="answer",
    build=build,
)
