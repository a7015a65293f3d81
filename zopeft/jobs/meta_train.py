"""The job of ``zopeft meta-train``: a fine-tuner for a base model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import InputError, RunError, input_error
from zopeft.jobs.build import (
    load_base,
    load_rows,
    load_task,
    model_label,
    on_embedded,
    task_slug,
    wrap,
)
from zopeft.jobs.folder import Folder
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.serving import TYPICAL_LOSS, serve
from zopeft.jobs.together import all_of
from zopeft.ranks import begin, current
from zopeft.recipe.names import registry
from zopeft.recipe.schema import Recipe
from zopeft.report.heatmap import plot_scales
from zopeft.report.plot import plot_losses
from zopeft.report.summary import ends, hardware, peak_bytes, versions

if TYPE_CHECKING:
    from zopeft.meta.settings import MetaSettings


def meta_train(
    recipe: Recipe,
    out: str | None = None,
    overwrite: bool = False,
    listener: Listener = ignore,
    dry: bool = False,
) -> dict[str, Any]:
    """Learns a fine-tuner and writes it to a folder.

    Args:
        recipe: What to learn from.
        out: Folder of the fine-tuner; None takes ``runs/meta-TASKS-SPACE-N``.
        overwrite: Whether an earlier result may be replaced.
        listener: Called with reports.
        dry: Whether all is made ready and told, and no step made and nothing written.

    Returns:
        The summary.

    Raises:
        InputError: The model, the tasks, their data or a setting cannot be used.
        RunError: The loss was not finite for some steps in a row, or a process is missing.
    """
    if not recipe.meta.tasks:
        do = "give one or more of: " + ", ".join(registry("task"))
        raise input_error("--task", "no task given", do=do)
    stem = f"meta-{'-'.join(map(task_slug, recipe.meta.tasks))}-{recipe.peft.name}"
    inputs = [recipe.model.name, recipe.task.data]
    ranks = begin(recipe.training.ddp_timeout)
    made = partial(Folder, out, stem, overwrite, inputs=inputs)
    with ranks.afresh(), all_of(ranks, made) as folder:
        return _learned(recipe, folder, listener, dry)


def _learned(recipe: Recipe, folder: Folder, listener: Listener, dry: bool) -> dict[str, Any]:
    """Learns a fine-tuner into its folder."""
    from zopeft.finetuner.size import file_bytes
    from zopeft.jobs.meta_beginning import begin_lines, passes_of

    started, ranks = time.monotonic(), current()
    with ranks.gate():
        model, tokenizer, source = load_base(recipe, listener)
        rows = _rows(recipe, on_embedded(source))
        blocks = wrap(recipe, model)
        settings = _settings(recipe).decided(blocks.space)
    state = {
        "job": "meta-train",
        "out": str(folder.path),
        "model": model_label(source),
        "embedded": source.embedded,
        "peft": recipe.peft.name,
        "tasks": list(recipe.meta.tasks),
        "seed": recipe.training.seed,
        "recipe": recipe.to_dict(),
        "versions": versions(),
        "hardware": hardware(),
    }
    for line in begin_lines(recipe, blocks, source, rows, settings, ranks.count):
        listener(Progress("load", note=line))
    if dry:
        passes = passes_of(settings, len(rows), blocks)
        return {**state, "dry_run": True, "steps": settings.steps, "forward_passes": passes}
    history: list[dict[str, Any]] = []
    finetuner = _run(recipe, blocks, tokenizer, rows, folder, state, history, listener)
    if source.embedded:
        # Its folder's name says nothing to anybody else.
        finetuner.config.base_model = "zopeft-embedded"
    losses = [float(row["loss"]) for row in history]
    if folder.leads:
        _write(folder, recipe, blocks, finetuner, losses)
    summary = {
        **state,
        "groups": len(finetuner.config.groups),
        "shapes": finetuner.config.training.get("shapes", ""),
        "file_bytes": file_bytes(finetuner.config),
        "steps": len(history),
        **_passes(finetuner),
        "seconds": round(time.monotonic() - started, 3),
        **ends(losses),
        "scales": {key: history[-1].get(key) for key in _SCALES},
        **({"ranks": ranks.count} if ranks.several else {}),
        "peak_bytes": peak_bytes(),
        "status": "done",
    }
    folder.write(summary)
    return summary


def _passes(finetuner: Any) -> dict[str, int]:
    """Returns the forward passes made, where the meta-training has counted them."""
    found = finetuner.config.training.get("forward_passes")
    return {} if found is None else {"forward_passes": found}


def _write(
    folder: Folder, recipe: Recipe, blocks: Any, finetuner: Any, losses: list[float]
) -> None:
    """Writes the fine-tuner and its pictures."""
    try:
        finetuner.save_pretrained(folder.path, overwrite=True)
    except InputError as error:
        # The folder was good when the run began: it broke while running.
        raise RunError(str(error)) from error
    kind = {"backward": "first-order run", "forward": "batches"}[recipe.meta.gradients]
    plot_losses({kind: losses}, folder.path / "loss.png", "meta-training")
    told = f"at loss {TYPICAL_LOSS:g}, on the model that they were learned on"
    cells = serve(blocks, finetuner, allow_none=True).cells()
    plot_scales(cells, folder.path / "scales.png", "learned scales", told)


def _rows(recipe: Recipe, embedded: bool) -> dict[str, list[dict[str, Any]]]:
    """Returns the training rows of each task.

    With several tasks, ``--data`` holds one folder a task.

    Raises:
        InputError: A task's data cannot be had.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in recipe.meta.tasks:
        section = recipe.task
        if section.data and len(recipe.meta.tasks) > 1:
            section = replace(section, data=str(Path(section.data) / task_slug(name)))
        one = replace(recipe, task=section)
        found[name] = load_rows(one, load_task(name), "train", embedded)
    return found


_SCALES = ("scale_min", "scale_median", "scale_max")


def _run(
    recipe: Recipe,
    blocks: Any,
    tokenizer: Any,
    rows: Mapping[str, Any],
    folder: Folder,
    state: Mapping[str, Any],
    history: list[dict[str, Any]],
    listener: Listener,
) -> Any:
    """Runs the meta-training; the folder is touched once its first step has been made."""
    from zopeft.meta import meta_train as learn

    ticks: list[float] = []
    # The rows are still to be encoded.
    listener(Progress("meta-train", 0, recipe.meta.steps))

    def progress(step: int, total: int, figures: Mapping[str, Any]) -> None:
        if not history:
            folder.begin(state)
        history.append(dict(figures))
        ticks.append(time.monotonic())
        each = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else None
        loss = float(figures["loss"])
        listener(Progress("meta-train", step, total, loss=loss, seconds=each))

    return learn(
        blocks.model,
        tasks=recipe.meta.tasks,
        tokenizer=tokenizer,
        rows=rows,
        max_length=recipe.task.max_length,
        blocks=blocks,
        progress=progress,
        **_keywords(recipe),
    )


def _keywords(recipe: Recipe) -> dict[str, Any]:
    """Returns the settings as `zopeft.meta.meta_train` takes them."""
    section = asdict(recipe.meta)
    return {
        **{name: value for name, value in section.items() if name not in ("tasks", "rows")},
        "noise": recipe.method.noise,
        "noise_rank": recipe.method.rank,
        "seed": recipe.training.seed,
        "token_rows": recipe.meta.rows,
    }


def _settings(recipe: Recipe) -> MetaSettings:
    """Returns the checked settings."""
    from zopeft.meta.settings import MetaSettings

    return MetaSettings.of(**_keywords(recipe))
