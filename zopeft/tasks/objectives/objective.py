"""Objectives: which loss function a run minimises, and on which batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zopeft.errors import close_matches, input_error
from zopeft.tasks.objectives.metrics import METRICS, Metric
from zopeft.tasks.objectives.prompted import Prompted
from zopeft.tasks.task import Task


@dataclass(frozen=True)
class ObjectiveKind:
    """A kind of objective.

    Attributes:
        name: Its name in the registry.
        loss: The loss of tasks that it stands for; None where it is a score.
    """

    name: str
    loss: Literal["answer", "choice"] | None = None

    @property
    def scores(self) -> bool:
        """Whether it is a score of what the model does, which has no gradient."""
        return self.loss is None


ANSWER = ObjectiveKind("answer", "answer")
CHOICE = ObjectiveKind("choice", "choice")
METRIC = ObjectiveKind("metric")
REWARD = ObjectiveKind("reward")


class MetricScore:
    """A metric as a score of completions.

    Args:
        name: Its name in `METRICS`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.metric = name, METRICS[name]

    def __call__(
        self, rows: Sequence[Prompted], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Returns the metric of each completion."""
        metric: Metric = self.metric
        return [metric(text, one.answers) for one, text in zip(rows, texts, strict=True)]


def metric_of(task: Task, name: str | None) -> str:
    """Returns the metric by which a task's rows are scored.

    Args:
        task: The task.
        name: A metric by name; None for the task's own.

    Raises:
        InputError: The metric is unknown, is a loss, or has no answers to compare with.
    """
    if name is not None and name not in METRICS:
        raise input_error("objective.metric", "unknown metric", name, close_matches(name, METRICS))
    if task.kind == "choice":
        if name not in (None, "accuracy"):
            do = "leave it out: accuracy, of the option with the highest score"
            raise input_error("objective.metric", f"{task.name} has options", name, do)
        return "accuracy"
    if task.kind == "prompt":
        do = "give --objective reward and a function"
        raise input_error("--objective", "rows of prompts alone have no answers", "metric", do)
    found = name or task.metric
    if found == "perplexity":
        do = "give objective.metric=f1 (zopeft list metrics), or --objective answer"
        raise input_error("--objective", f"{task.name} is scored by its loss", "metric", do)
    return found
