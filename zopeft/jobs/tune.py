"""The job of ``zopeft tune``: a tuned model or adapter, its journal, scores and curve."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zopeft.errors import RunError, input_error
from zopeft.jobs.asked import check_executor
from zopeft.jobs.best import clear_best
from zopeft.jobs.build import (
    load_base,
    load_finetuner,
    load_rows,
    method_name,
    model_label,
    on_embedded,
    start_adapter,
    task_slug,
    wrap,
)
from zopeft.jobs.continuing import check_same, goes_on
from zopeft.jobs.data import make_task, record_of, take_template, told
from zopeft.jobs.ending import diverged
from zopeft.jobs.evaluate import measure
from zopeft.jobs.folder import Folder, stored_record
from zopeft.jobs.goal import make_goal
from zopeft.jobs.kept import Kept, steps_of
from zopeft.jobs.metrics import Metrics
from zopeft.jobs.prepared import Prepared
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.result_card import write_card
from zopeft.jobs.together import all_of, save
from zopeft.jobs.trackers import check_tracker
from zopeft.ranks import begin, current
from zopeft.ranks.losing import LostError
from zopeft.recipe.schema import Recipe
from zopeft.report.plot import plot_losses
from zopeft.report.summary import ends, hardware, peak_bytes, score_ends, versions

if TYPE_CHECKING:
    from zopeft.tasks import Task


def tune(
    recipe: Recipe,
    out: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener = ignore,
    dry: bool = False,
) -> dict[str, Any]:
    """Tunes a model or an adapter and writes it to a folder.

    Args:
        recipe: What to tune, on what, how.
        out: Folder of the result; None takes ``runs/TASK-PEFT-METHOD-N``.
        overwrite: Whether an earlier result may be replaced.
        resume: Whether the run in `out` is continued.
        listener: Called with reports.
        dry: Whether all is made ready and told, and no step made and nothing written.

    Returns:
        The summary, which is also the folder's ``run.json``.

    Raises:
        InputError: Something that the recipe names cannot be used; nothing was changed.
        RunError: The loss was not finite for some steps in a row; the last good state is
            in the folder.
    """
    ranks = begin(recipe.training.ddp_timeout)
    with all_of(
        ranks, lambda: _folder(recipe, make_task(recipe), out, overwrite, resume)
    ) as folder:
        with ranks.gate():
            check_tracker(recipe.training.report_to)
            task = make_task(recipe)
            earlier = stored_record(out) if resume else {}
            if resume:
                check_same(recipe, earlier)
                resume = goes_on(folder, earlier, listener)
        if dry:
            return _rehearsed(recipe, task, folder, resume, listener)
        return _tuned(recipe, task, folder, earlier if resume else {}, listener)


def _tuned(
    recipe: Recipe, task: Task, folder: Folder, earlier: dict[str, Any], listener: Listener
) -> dict[str, Any]:
    """Makes a run in its folder, or goes on with the one whose record is `earlier`."""
    from zopeft.jobs.beginning import begin_lines

    started = time.monotonic()
    with current().gate():
        prepared = _prepare(recipe, task, listener)
    state = _state(recipe, folder, prepared)
    if not folder.resume:
        folder.begin(state)
    for line in begin_lines(recipe, prepared, steps_of(folder.path) if earlier else 0):
        listener(Progress("load", note=line))
    log = Metrics(folder.path, resume=bool(earlier))
    if not earlier and folder.leads:
        clear_best(folder.path)
    metrics = _before(recipe, prepared, earlier, listener)
    if metrics["before"]:
        log.evaluated(0, metrics["before"], 0.0)
    folder.write({**state, "status": "running", "metrics": metrics})
    run = _run(recipe, folder, prepared, log, bool(earlier), listener)
    save(folder, prepared.blocks.model, prepared.tokenizer)
    metrics["after"] = _after(recipe, prepared, log, run, listener)
    score = prepared.goal.score
    wrong = diverged(metrics, run.losses, score)
    curve = [0.0 - loss for loss in run.losses] if score else run.losses
    if len(curve) > 1 and folder.leads:
        plot = folder.path / ("score.png" if score else "loss.png")
        plot_losses({prepared.method: curve}, plot, prepared.task.name, score or "loss")
    differing = run.differing or earlier.get("eps")
    summary = {
        **state,
        "steps": run.steps,
        "stopped": run.stopped,
        "best": run.best,
        "skipped": run.skipped,
        "spikes": run.spikes,
        "forward_passes": run.forward_passes,
        "seconds": round(time.monotonic() - started, 3),
        "seconds_training": round(run.seconds, 3),
        **ends(run.losses),
        **score_ends(run.losses, score),
        "metrics": metrics,
        "lr": run.lr,
        "lr_last": run.lr_last,
        "lr_reason": run.lr_reason,
        **({"eps": differing} if differing else {}),
        "shapes": run.shapes,
        "layout": run.layout,
        **({"ranks": current().count} if current().several else {}),
        "peak_bytes": peak_bytes(),
        "diverged": wrong,
        "status": "diverged" if wrong else "done",
    }
    if folder.leads:
        write_card(folder.path, recipe, prepared.task, prepared.source, summary)
    folder.write(summary)
    return summary


def _rehearsed(
    recipe: Recipe, task: Task, folder: Folder, resume: bool, listener: Listener
) -> dict[str, Any]:
    """Makes everything ready, says what would be done, and leaves the folder as it is."""
    from zopeft.jobs.beginning import begin_lines, forwards_of, passes_of
    from zopeft.jobs.loop import check_steps

    prepared = _prepare(recipe, task, listener)
    done = steps_of(folder.path) if resume else 0
    for line in begin_lines(recipe, prepared, done):
        listener(Progress("load", note=line))
    check_steps(recipe, folder.path, prepared)
    passes = passes_of(recipe, forwards_of(recipe, prepared.method), done)
    state = _state(recipe, folder, prepared)
    return {**state, "dry_run": True, "steps": recipe.training.steps, "forward_passes": passes}


def _folder(recipe: Recipe, task: Task, out: str | None, overwrite: bool, resume: bool) -> Folder:
    """Returns the run's folder, checked."""
    method = method_name(recipe)
    stem = f"{task_slug(recipe.task.name or task.name)}-{recipe.peft.name}-{method}"
    inputs = [recipe.model.name, *recipe.places, recipe.data.validation, recipe.method.finetuner]
    return Folder(out, stem, overwrite, resume, inputs, Kept(steps_of, "step"))


def _prepare(recipe: Recipe, task: Task, listener: Listener) -> Prepared:
    """Returns the objects of a run.

    Raises:
        InputError: Something that the recipe names cannot be used.
    """
    from zopeft.models.soundness import spoilt
    from zopeft.tasks import Collator, TaskDataset
    from zopeft.tasks.counts import Counts
    from zopeft.tasks.evaluation import check_rows, fit_length
    from zopeft.tasks.table import table_rows

    check_executor(recipe)
    finetuner = load_finetuner(recipe)
    if recipe.peft.options.get("start") == "finetuner" and finetuner is None:
        do = "give --finetuner, or take start=activations"
        raise input_error("peft lora", "start needs a fine-tuner", "finetuner", do)
    model, tokenizer, source = load_base(recipe, listener)
    found = spoilt(model)
    if found:
        do = "download it again, or load it with a wider --dtype"
        raise input_error("model", f"has weights that are not finite: {found}", do=do)
    embedded = on_embedded(source)
    take_template(recipe, task, tokenizer, embedded, listener)
    rows = load_rows(recipe, task, "train", embedded)
    validation = load_rows(recipe, task, "validation", embedded)
    blocks = wrap(recipe, model)
    if finetuner is not None:
        finetuner.match(blocks)
    length = fit_length(blocks.model, recipe.task.max_length)
    known = table_rows(blocks.model)
    train = TaskDataset(task, rows, tokenizer, length, table_rows=known)
    start_adapter(recipe, blocks, train, Collator(tokenizer, known), finetuner)
    scored = check_rows(blocks.model, tokenizer, task, validation, length)
    counts = {"train": Counts.of(train, rows), "validation": Counts.of(scored, validation)}
    for line in told(recipe, task, tokenizer, rows, *counts.values()):
        listener(Progress("load", note=line))
    goal = make_goal(recipe, task, tokenizer, train, rows, blocks.model)
    goal.rehearse(blocks.model)
    return Prepared(
        blocks=blocks,
        tokenizer=tokenizer,
        source=source,
        task=task,
        train=train,
        validation=validation,
        scored=scored,
        counts=counts,
        finetuner=finetuner,
        method=method_name(recipe),
        goal=goal,
    )


def _state(recipe: Recipe, folder: Folder, prepared: Prepared) -> dict[str, Any]:
    """Returns what the record says before the first step."""
    return {
        "job": "tune",
        "out": str(folder.path),
        "model": model_label(prepared.source),
        "embedded": on_embedded(prepared.source),
        "task": prepared.task.name,
        "peft": recipe.peft.name,
        "method": prepared.method,
        "finetuner": recipe.method.finetuner,
        "blocks": len(prepared.blocks),
        "trained_numbers": sum(prepared.blocks.numels),
        "train_examples": None if prepared.streams else len(prepared.train),
        "data": record_of(prepared.task, prepared.counts),
        "seed": recipe.training.seed,
        "recipe": recipe.to_dict(),
        "versions": versions(),
        "hardware": hardware(),
    }


def _before(
    recipe: Recipe, prepared: Prepared, earlier: dict[str, Any], listener: Listener
) -> dict[str, Any]:
    """Returns the scores before the first step: measured, or those of the resumed run."""
    known = (earlier.get("metrics") or {}).get("before")
    if known or not recipe.training.eval_before:
        return {"before": known}
    if earlier:
        return {"before": None}
    model, tokenizer = prepared.blocks.model, prepared.tokenizer
    rows = prepared.validation
    given = (recipe, model, tokenizer, prepared.task, rows, listener, "evaluate before")
    return {"before": measure(*given, prepared.goal, prepared.scored)}


def _after(
    recipe: Recipe, prepared: Prepared, log: Metrics, run: Any, listener: Listener
) -> dict[str, Any]:
    """Returns the scores of the result: those of its evaluation in the run, or measured."""
    known = log.scores(run.steps if run.best is None else run.best)
    if recipe.training.eval_steps and known is not None:
        return known
    model, rows = prepared.blocks.model, prepared.validation
    given = (recipe, model, prepared.tokenizer, prepared.task, rows, listener, "evaluate after")
    scores = measure(*given, prepared.goal, prepared.scored)
    log.evaluated(run.steps, scores, log.seconds)
    return scores


def _run(
    recipe: Recipe,
    folder: Folder,
    prepared: Prepared,
    log: Metrics,
    resume: bool,
    listener: Listener,
) -> Any:
    """Makes the steps; when they fail, the last good weights are saved.

    Args:
        recipe: Its settings.
        folder: Its folder.
        prepared: Its objects.
        log: Takes what is measured as it goes.
        resume: Whether there are steps to go on from.
        listener: Called with reports.

    Raises:
        RunError: The loss was not finite for some steps in a row.
    """
    from zopeft.jobs.loop import run_steps
    from zopeft.models.soundness import spoilt
    from zopeft.tasks.stream import StreamedRowError

    try:
        return run_steps(recipe, folder.path, prepared, log, resume, listener)
    except LostError:
        raise
    except RunError:
        if not spoilt(prepared.blocks.model):
            save(folder, prepared.blocks.model, prepared.tokenizer)
        raise
    except StreamedRowError as error:
        # Met on the way: the steps before it count.
        save(folder, prepared.blocks.model, prepared.tokenizer)
        do = "correct it, and go on with --resume"
        raise StreamedRowError(f"{error}; {do}") from error
