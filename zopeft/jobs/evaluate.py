"""The job of ``zopeft eval``: a model's or an adapter's score on a task."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zopeft.jobs.build import load_rows, model_label, on_embedded
from zopeft.jobs.data import Tuned, make_task, record_of, take_template, told
from zopeft.jobs.folder import Folder
from zopeft.jobs.goal import Goal, make_goal
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.served import load_served
from zopeft.jobs.together import all_of, sharing
from zopeft.ranks import begin, current
from zopeft.recipe.schema import Recipe
from zopeft.report.summary import hardware, peak_bytes, versions

if TYPE_CHECKING:
    from zopeft.tasks import TaskDataset


def evaluate(
    recipe: Recipe,
    adapter: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
    draw: int | None = 0,
) -> dict[str, Any]:
    """Measures a task's metric on its validation rows.

    Args:
        recipe: What to measure.
        adapter: A PEFT adapter's folder or hub id. Without a model in the recipe, the base
            model that the adapter names is loaded.
        out: Folder for the record; None writes nothing.
        overwrite: Whether an earlier record may be replaced.
        listener: Called with reports.
        draw: Seed of the draw of rows, where the recipe takes fewer than there are; None takes
            the first.

    Returns:
        The summary, with ``metrics`` as the task's evaluation gives them.

    Raises:
        InputError: The model, adapter, task or data cannot be used.
    """
    ranks = begin(recipe.training.ddp_timeout)
    if out is None:
        return _evaluated(recipe, adapter, None, listener, draw)
    with all_of(ranks, lambda: Folder(out, "eval", overwrite, inputs=[adapter])) as folder:
        return _evaluated(recipe, adapter, folder, listener, draw)


def _evaluated(
    recipe: Recipe,
    adapter: str | None,
    folder: Folder | None,
    listener: Listener,
    draw: int | None,
) -> dict[str, Any]:
    """Measures, and writes the record where there is a folder for it."""
    from zopeft.tasks.counts import Counts
    from zopeft.tasks.evaluation import check_rows

    started = time.monotonic()
    with current().gate():
        tuned = Tuned.of(adapter or recipe.model.name)
        task = make_task(recipe, True, tuned)
        model, tokenizer, source = load_served(recipe, adapter, listener)
        embedded = on_embedded(source)
        take_template(recipe, task, tokenizer, embedded, listener)
        rows = load_rows(recipe, task, "validation", embedded, draw)
        checked = check_rows(model, tokenizer, task, rows, recipe.task.max_length)
        counts = Counts.of(checked, rows)
        for line in told(recipe, task, tokenizer, rows, None, counts):
            listener(Progress("load", note=line))
        goal = make_goal(recipe, task, tokenizer, checked, rows, model, adapter)
        if goal.told:
            listener(Progress("load", note=goal.told))
        goal.rehearse(model)
    metrics = measure(recipe, model, tokenizer, task, rows, listener, "evaluate", goal, checked)
    summary: dict[str, Any] = {
        "job": "eval",
        "out": None if folder is None else str(folder.path),
        "model": model_label(source),
        "adapter": adapter,
        "task": task.name,
        "data": record_of(task, {"validation": counts}),
        "metrics": metrics,
        "seconds": round(time.monotonic() - started, 3),
        "peak_bytes": peak_bytes(),
        "drawn_by": draw,
        "versions": versions(),
        "hardware": hardware(),
        "recipe": recipe.to_dict(),
    }
    if folder is not None:
        folder.begin(summary)
        folder.write({"status": "done"})
    return summary


def measure(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    task: Any,
    rows: list[dict[str, Any]],
    listener: Listener,
    stage: str,
    goal: Goal | None = None,
    encoded: TaskDataset | None = None,
) -> dict[str, Any]:
    """Returns the task's metric and loss of a model on rows, and the score of its goal.

    Args:
        recipe: The job's settings.
        model: The model.
        tokenizer: Its tokenizer.
        task: The task.
        rows: The rows to score.
        listener: Called with reports.
        stage: What is told of it.
        goal: The goal whose score is wanted, too.
        encoded: The rows as `zopeft.tasks.evaluation.check_rows` encodes them; None encodes them.
    """
    from zopeft.models.quiet import quiet
    from zopeft.tasks import evaluate as score

    listener(Progress(stage, note=f"{stage}: {len(rows)} {task.name} examples"))
    section = recipe.training
    with quiet():
        metrics: dict[str, Any] = score(
            model,
            tokenizer,
            task,
            rows,
            batch_size=section.eval_batch_size,
            max_length=recipe.task.max_length,
            max_examples=recipe.task.eval_examples,
            layout=section.layout,
            ranks=sharing(model),
            progress=lambda done, total: listener(Progress(stage, done, total)),
            encoded=encoded,
        )
        if goal is not None and goal.score not in metrics:
            limit = recipe.task.eval_examples
            some = rows if limit is None else rows[:limit]
            metrics = {**goal.measured(model, some, section.eval_batch_size), **metrics}
    return metrics
