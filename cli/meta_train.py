"""``zopeft meta-train``: learn a fine-tuner for a base model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zopeft.meta.options import MetaOptions
from zopeft.optim.declared import about, choices

from . import options as o


def _option(flag: str, name: str, metavar: str = "") -> Any:
    """Returns the flag of a setting of meta-training, which says itself what it is."""
    words = metavar or "|".join(choices(MetaOptions, name))
    line, usual = about(MetaOptions, name), getattr(MetaOptions, name)
    text = f"{line[0].upper()}{line[1:]}."
    shown = False if usual is None else str(usual)
    return typer.Option(
        flag, metavar=words, help=text, show_default=shown, rich_help_panel="Meta-training"
    )


Objective = Annotated[str | None, _option("--objective", "objective")]
Capacity = Annotated[str | None, _option("--capacity", "capacity")]
Rank = Annotated[str | None, _option("--rank", "rank", "N")]
Sharing = Annotated[str | None, _option("--sharing", "sharing")]
Policy = Annotated[str | None, _option("--policy", "policy")]
ForwardOnly = Annotated[
    bool,
    typer.Option(
        "--forward-only",
        help="Learn from forward passes alone (meta.gradients=forward).",
        rich_help_panel="Meta-training",
    ),
]
NoNormalise = Annotated[
    bool,
    typer.Option(
        "--no-normalise",
        help="Let the scales change the total noise power.",
        rich_help_panel="Meta-training",
    ),
]
Hidden = Annotated[str | None, _option("--hidden", "hidden", "N")]
LrModel = Annotated[str | None, _option("--lr-model", "lr_model", "NUMBER")]
LrPertnn = Annotated[str | None, _option("--lr-pertnn", "lr_pertnn", "NUMBER")]
MetaLr = Annotated[str | None, _option("--lr", "lr_zo", "NUMBER")]
MetaSteps = Annotated[str | None, _option("--steps", "steps", "N")]
MetaBatchSize = Annotated[str | None, _option("--batch-size", "batch_size", "N")]
MetaEps = Annotated[str | None, _option("--eps", "eps", "NUMBER")]
ResetEvery = Annotated[str | None, _option("--reset-every", "reset_every", "N")]


def meta_train(
    words: o.Words = None,
    task: o.Tasks = None,
    data: o.Data = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    full: o.Full = False,
    peft: o.Peft = None,
    forward_only: ForwardOnly = False,
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
    steps: MetaSteps = None,
    batch_size: MetaBatchSize = None,
    eps: MetaEps = None,
    seed: o.Seed = None,
    dtype: o.Dtype = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Learn a fine-tuner once for a base model; needs gradients, or more forward passes."""
    from .output import output
    from .summary import dry_table, meta_table

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, full, peft),
        "meta.steps": ("--steps", steps),
        "meta.batch_size": ("--batch-size", batch_size),
        "training.seed": ("--seed", seed),
        "meta.tasks": ("--task", task or None),
        "task.data": ("--data", data),
        "meta.gradients": ("--forward-only", "forward" if forward_only else None),
        "meta.objective": ("--objective", objective),
        "meta.capacity": ("--capacity", capacity),
        "meta.input_rank" if forward_only else "meta.rank": ("--rank", rank),
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

        summary = run(checked, out, overwrite, screen.listen, dry_run)
        screen.result(summary, (dry_table if dry_run else meta_table)(summary))
