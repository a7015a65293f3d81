"""Objectives: which loss function a run minimises, and on which batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zopeft.errors import input_error
from zopeft.tasks.objectives.library import library_metric
from zopeft.tasks.objectives.metrics import METRICS, Metric
from zopeft.tasks.objectives.prompted import Prompted
from zopeft.tasks.objectives.whole import WholeScore
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


def metric_score(name: str, trust: bool = False) -> MetricScore | WholeScore:
    """Returns the score of a metric by name.

    Args:
        name: One of `METRICS`, or of another library, see `zopeft.tasks.objectives.library`.
        trust: Whether a metric's code from the hub may be run.

    Raises:
        InputError: There is none of that name, or it cannot be had.
    """
    return MetricScore(name) if name in METRICS else WholeScore(library_metric(name, trust))


def metric_of(task: Task, name: str | None) -> str:
    """Returns the metric by which a task's rows are scored.

    Args:
        task: The task.
        name: A metric by name, which is known; None for the task's own.

    Raises:
        InputError: The metric is a loss, or has no answers to compare with.
    """
    if task.kind == "choice":
        if name in METRICS and name != "accuracy":
            do = "leave it out: accuracy, of the option with the highest score; or f1_macro"
            raise input_error("objective.metric", f"{task.name} has options", name, do)
        return name or "accuracy"
    if task.kind == "prompt":
        do = "give --objective reward and a function"
        raise input_error("--objective", "rows of prompts alone have no answers", "metric", do)
    found = name or task.metric
    if found == "perplexity":
        do = "give objective.metric=f1 (zopeft list metrics), or --objective answer"
        raise input_error("--objective", f"{task.name} is scored by its loss", "metric", do)
    return found
