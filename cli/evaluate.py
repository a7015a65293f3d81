"""``zopeft eval``: measure a model, or an adapter for it, on a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from . import options as o

Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="DIR", help="A PEFT adapter's folder or hub id."),
]
Examples = Annotated[
    str | None, typer.Option("--examples", metavar="N", help="At most so many examples.")
]


def evaluate(
    words: o.Words = None,
    task: o.Task = None,
    data: o.OwnData = None,
    split: o.Split = None,
    adapter: Adapter = None,
    examples: Examples = None,
    recipe: o.RecipeOption = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    out: o.Out = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    dtype: o.Dtype = None,
    layout: o.Layout = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Measure accuracy, F1 or perplexity on a task's validation rows or your own."""
    from .output import facts_table, output
    from .spared import spare

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        "task.name": ("--task", task),
        "task.data": ("--data", data),
        "data.split": ("--split", split),
        "task.eval_examples": ("--examples", examples),
        "training.eval_batch_size": ("--batch-size", batch_size),
        "training.seed": ("--seed", seed),
        "training.layout": ("--layout", layout),
    }
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", recipe, overrides, flags)
        if adapter is None:
            spare(checked)
        from zopeft.jobs.evaluate import evaluate as run

        summary = run(checked, adapter, out, overwrite=overwrite, listener=screen.listen)
        facts = {key: summary[key] for key in ("model", "adapter", "task")}
        facts |= {
            **_measured(summary["metrics"]),
            "seconds": summary["seconds"],
            "out": summary["out"],
        }
        screen.result(summary, facts_table("evaluation", facts))


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was measured, as the table shows it."""
    from zopeft.jobs.metrics import numbers

    from .summary import LABELS, prediction

    found = {LABELS.get(name, name): value for name, value in numbers(metrics).items()}
    return {**found, **prediction(metrics)}
