"""The main job, small: meta-train, tune with the result and with MeZO, score, draw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from zopeft.jobs.evaluate import evaluate
from zopeft.jobs.folder import Folder
from zopeft.jobs.loop import journaled_losses
from zopeft.jobs.meta_train import meta_train
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.jobs.tune import tune
from zopeft.recipe.load import load_recipe
from zopeft.report.plot import plot_losses
from zopeft.report.summary import versions

TASK = "squad"
METRIC = "f1"
STEPS = 300
META_STEPS = 60
EXAMPLES = 100
"""Validation examples of each score: few, so that the demo stays short."""


def demo(
    out: str,
    overwrite: bool = False,
    steps: int = STEPS,
    meta_steps: int = META_STEPS,
    examples: int = EXAMPLES,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Runs the main job on the embedded model, without a network.

    Args:
        out: Folder of the fine-tuner, the two adapters, the scores and the curves.
        overwrite: Whether an earlier demo may be replaced.
        steps: Steps of each tuning.
        meta_steps: Steps of the meta-training.
        examples: Validation examples of each score.
        listener: Called with reports.

    Returns:
        The summary: one row a tuning, with loss and metric before and after.

    Raises:
        InputError: The folder is taken.
    """
    with Folder(out, "demo", overwrite) as folder:
        return _shown(folder, steps, meta_steps, examples, listener)


def _shown(
    folder: Folder, steps: int, meta_steps: int, examples: int, listener: Listener
) -> dict[str, Any]:
    """Runs the demo in its folder."""
    started = time.monotonic()
    folder.begin({"job": "demo", "out": str(folder.path), "task": TASK, "versions": versions()})
    finetuner = str(folder.path / "finetuner")
    note = f"1/3 meta-training a fine-tuner on copa, {meta_steps} steps"
    listener(Progress("demo", note=note))
    recipe = load_recipe("meta-train", "embedded/meta-train", [f"meta.steps={meta_steps}"])
    meta_train(recipe, finetuner, listener=listener)
    runs = []
    for number, (method, chosen) in enumerate(
        (("zo_finetuner", finetuner), ("mezo", None)), start=2
    ):
        note = f"{number}/3 tuning LoRA on {TASK} with {method}, {steps} steps"
        listener(Progress("demo", note=note))
        runs.append(_tuned(folder.path, method, chosen, steps, examples, listener))
    curves = {row["method"]: list(journaled_losses(Path(row["out"])).values()) for row in runs}
    plot = folder.path / "loss.png"
    plot_losses(curves, plot, f"{TASK}, LoRA, embedded model")
    summary = {
        "job": "demo",
        "out": str(folder.path),
        "task": TASK,
        "metric": METRIC,
        "examples": examples,
        "runs": runs,
        "plot": str(plot),
        "seconds": round(time.monotonic() - started, 3),
        "status": "done",
    }
    folder.write(summary)
    return summary


def _tuned(
    out: Path, method: str, finetuner: str | None, steps: int, examples: int, listener: Listener
) -> dict[str, Any]:
    """Returns the row of one tuning; its score is measured again from the saved adapter."""
    overrides = [
        f"training.steps={steps}",
        f"task.eval_examples={examples}",
    ]
    flags = {
        "task.name": ("--task", TASK),
        "method.name": ("--method", method),
        "method.finetuner": ("--finetuner", finetuner),
    }
    adapter = str(out / method)
    summary = tune(load_recipe("tune", "embedded", overrides, flags), adapter, listener=listener)
    scoring: dict[str, tuple[str, Any]] = {
        "task.name": ("--task", TASK),
        "task.eval_examples": ("--examples", examples),
    }
    scored = evaluate(load_recipe("eval", None, (), scoring), adapter, listener=listener)
    kept = ("out", "method", "steps", "forward_passes", "seconds", "loss_first", "loss_last", "lr")
    return {
        **{key: summary[key] for key in kept},
        "before": summary["metrics"]["before"][METRIC],
        "after": scored["metrics"][METRIC],
        "metrics": {"before": summary["metrics"]["before"], "after": scored["metrics"]},
    }
