"""Objectives: what a run optimises: a loss of its task, a metric, or a reward.

A loss is minimised as it is. Of a metric or reward what is minimised is the negative score of what
the model generates, which has no gradient and needs none here.
"""

from __future__ import annotations

from zopeft.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "answer": "zopeft.tasks.objectives.objective:ANSWER",
        "choice": "zopeft.tasks.objectives.objective:CHOICE",
        "metric": "zopeft.tasks.objectives.objective:METRIC",
        "reward": "zopeft.tasks.objectives.objective:REWARD",
    },
    about={
        "answer": "the loss on the tokens of the right answer",
        "choice": "the loss on the scores of an example's options",
        "metric": "the task's own metric, or another, of what the model generates or chooses",
        "reward": "what functions of your own give for what the model generates",
    },
)
"""Objective name to `zopeft.tasks.objectives.objective.ObjectiveKind`."""

__all__ = ["OBJECTIVES"]
