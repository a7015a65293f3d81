"""``zopeft eval``: measure a model, or an adapter for it, on a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from zopeft.errors import input_error

from . import options as o
from . import run_options as r

Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="DIR", help="A PEFT adapter's folder or hub id."),
]
Examples = Annotated[
    str | None,
    typer.Option("--examples", metavar="N", help="The first so many examples, see --seed."),
]
Seed = Annotated[
    str | None,
    typer.Option("--seed", metavar="N", help="Draw the --examples by this seed instead."),
]
Harness = Annotated[
    str | None,
    typer.Option(
        "--harness",
        metavar="TASKS",
        help="Tasks of lm-evaluation-harness in place of --task: names or YAML files, by commas.",
    ),
]


def evaluate(
    words: o.Words = None,
    task: o.Task = None,
    data: o.OwnData = None,
    split: o.Split = None,
    objective: r.Objective = None,
    reward: r.Reward = None,
    harness: Harness = None,
    adapter: Adapter = None,
    examples: Examples = None,
    seed: Seed = None,
    recipe: o.RecipeOption = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    out: o.Out = None,
    batch_size: o.BatchSize = None,
    dtype: o.Dtype = None,
    layout: o.Layout = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Measure accuracy, F1, perplexity or a reward on a task's validation rows or your own."""
    from .output import facts_table, output, rows_table
    from .spared import spare

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        "task.name": ("--task", task),
        **o.data_flags(data, overrides),
        "data.split": ("--split", split),
        "objective.name": ("--objective", objective),
        "objective.rewards": ("--reward", reward or None),
        "task.eval_examples": ("--examples", examples),
        "training.eval_batch_size": ("--batch-size", batch_size),
        "training.layout": ("--layout", layout),
    }
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("eval", recipe, overrides, flags)
        if harness is not None:
            beside = {
                "--task": task,
                "--data": data or None,
                "--split": split,
                "--objective": objective,
                "--reward": reward or None,
                "--seed": seed,
                "--out": out,
            }
            _alone(beside)
            from zopeft.jobs.harness import harness as ask

            most = checked.task.eval_examples if examples is not None else None
            names = [name.strip() for name in harness.split(",") if name.strip()]
            summary = ask(checked, names, adapter, most, screen.listen)
            rows = [(n, m, v) for n, one in summary["metrics"].items() for m, v in one.items()]
            screen.result(summary, rows_table("lm-evaluation-harness", ("task", "", ""), rows))
            return
        spare(checked, adapter)
        from zopeft.jobs.evaluate import evaluate as run

        draw = _draw(examples, seed)
        summary = run(checked, adapter, out, overwrite, screen.listen, draw)
        facts = {key: summary[key] for key in ("model", "adapter", "task")}
        facts |= {
            **_measured(summary["metrics"]),
            "seconds": summary["seconds"],
            "out": summary["out"],
        }
        screen.result(summary, facts_table("evaluation", facts))


def _draw(examples: str | None, seed: str | None) -> int | None:
    """Returns the seed that rows are drawn by; None takes the first."""
    if seed is None:
        # Without --examples, a recipe's own cap draws as `zopeft tune` does.
        return None if examples is not None else 0
    if examples is None:
        what = "there is nothing to draw without --examples"
        raise input_error("--seed", what, seed, "give --examples N, or leave it out")
    if not seed.isdigit():
        raise input_error("--seed", "must be a whole number of at least 0", seed)
    return int(seed)


def _alone(flags: Mapping[str, Any]) -> None:
    """Refuses what --harness has no use for."""
    given = next((name for name, value in flags.items() if value is not None), None)
    if given is not None:
        what = "does not go with --harness, whose tasks bring their rows"
        raise input_error(given, what, flags[given], "leave one of them out")


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was measured, as the table shows it."""
    from zopeft.jobs.metrics import numbers

    from .summary import prediction

    found = {
        name.replace("calibrated_", "calibrated "): value
        for name, value in numbers(metrics).items()
    }
    return {**found, **prediction(metrics)}
