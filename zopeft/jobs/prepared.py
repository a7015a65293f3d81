"""The objects of a tuning run, made before its folder is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.finetuner import FineTuner
    from zopeft.jobs.goal import Goal
    from zopeft.models import ModelSource
    from zopeft.tasks import Task, TaskDataset
    from zopeft.tasks.counts import Counts
    from zopeft.tasks.rows import Rows


@dataclass
class Prepared:
    """Everything a run needs, made before its folder is touched.

    Attributes:
        blocks: What is trained; ``blocks.model`` is the model.
        tokenizer: The model's tokenizer.
        source: Where the model came from.
        task: The task.
        train: The encoded training examples; of rows that are streamed, the first.
        validation: The validation rows.
        scored: The same rows, encoded.
        counts: What the rows of "train" and "validation" come to.
        finetuner: The fine-tuner, or None.
        method: Name of the optimizer.
        goal: What is optimised.
    """

    blocks: Blocks
    tokenizer: Any
    source: ModelSource
    task: Task
    train: TaskDataset
    validation: Rows
    scored: TaskDataset
    counts: dict[str, Counts]
    finetuner: FineTuner | None
    method: str
    goal: Goal

    @property
    def streams(self) -> bool:
        """Whether training rows are read as they are needed."""
        return self.goal.train is not self.train and hasattr(self.goal.train, "head")
