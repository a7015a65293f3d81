"""``zopeft meta-train``: learn a fine-tuner for a base model."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o

Objective = Annotated[
    str | None,
    typer.Option("--objective", metavar="paper|signal", help="What the fine-tuner is judged by."),
]
Capacity = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        metavar="auto|scales|subspace",
        help="Learn a scale a block, or also the directions that matter (objective signal).",
    ),
]
Rank = Annotated[
    str | None, typer.Option("--rank", metavar="N", help="Directions a side of a subspace.")
]
Sharing = Annotated[
    str | None,
    typer.Option(
        "--sharing", metavar="block|layer|role", help="One PertNN a block, a layer or a role."
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="constant|state", help="Whether scales move with the run (signal only)."
    ),
]
NoNormalise = Annotated[
    bool, typer.Option("--no-normalise", help="Let the scales change the total noise power.")
]
Hidden = Annotated[str | None, typer.Option("--hidden", metavar="N", help="Units of a PertNN.")]
LrModel = Annotated[
    str | None, typer.Option("--lr-model", metavar="NUMBER", help="Step of the watched run.")
]
LrPertnn = Annotated[
    str | None, typer.Option("--lr-pertnn", metavar="NUMBER", help="Step of the PertNNs (eta_2).")
]
MetaLr = Annotated[
    str | None,
    typer.Option("--lr", metavar="NUMBER", help="Step of the zeroth-order update (eta_1)."),
]
ResetEvery = Annotated[
    str | None, typer.Option("--reset-every", metavar="N", help="Steps between restarts.")
]


def meta_train(
    words: o.Words = None,
    task: o.Tasks = None,
    data: o.Data = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    full: o.Full = False,
    peft: o.Peft = None,
    objective: Objective = None,
    capacity: Capacity = None,
    rank: Rank = None,
    sharing: Sharing = None,
    policy: Policy = None,
    no_normalise: NoNormalise = False,
    hidden: Hidden = None,
    lr: MetaLr = None,
    lr_model: LrModel = None,
    lr_pertnn: LrPertnn = None,
    reset_every: ResetEvery = None,
    recipe: o.RecipeOption = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    out: o.Out = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    eps: o.Eps = None,
    seed: o.Seed = None,
    dtype: o.Dtype = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Learn a fine-tuner once for a base model; needs gradients, tune then does not."""
    from .output import output
    from .summary import meta_table

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, full, peft),
        "meta.steps": ("--steps", steps),
        "meta.batch_size": ("--batch-size", batch_size),
        "training.seed": ("--seed", seed),
        "meta.tasks": ("--task", task or None),
        "task.data": ("--data", data),
        "meta.objective": ("--objective", objective),
        "meta.capacity": ("--capacity", capacity),
        "meta.rank": ("--rank", rank),
        "meta.sharing": ("--sharing", sharing),
        "meta.policy": ("--policy", policy),
        "meta.normalise": ("--no-normalise", False if no_normalise else None),
        "meta.hidden": ("--hidden", hidden),
        "meta.lr_zo": ("--lr", lr),
        "meta.lr_model": ("--lr-model", lr_model),
        "meta.lr_pertnn": ("--lr-pertnn", lr_pertnn),
        "meta.reset_every": ("--reset-every", reset_every),
        "meta.eps": ("--eps", eps),
    }
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        checked = load_recipe("meta-train", recipe, overrides, flags)
        from zopeft.jobs.meta_train import meta_train as run

        summary = run(checked, out, overwrite=overwrite, listener=screen.listen)
        screen.result(summary, meta_table(summary))
