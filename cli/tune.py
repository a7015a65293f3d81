"""``zopeft tune``: tune a model, or an adapter for it, on a task."""

from __future__ import annotations

from . import options as o
from . import run_options as r


def tune(
    words: o.Words = None,
    task: o.Task = None,
    data: o.OwnData = None,
    split: o.Split = None,
    validation: o.Validation = None,
    objective: r.Objective = None,
    reward: r.Reward = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    full: o.Full = False,
    peft: o.Peft = None,
    finetuner: o.FineTunerOption = None,
    method: o.Method = None,
    recipe: o.RecipeOption = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    out: o.Out = None,
    resume: r.ResumeOrBegin = False,
    resume_auto: r.ResumeAuto = False,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    lr: o.Lr = None,
    eps: o.Eps = None,
    seed: o.Seed = None,
    dtype: o.Dtype = None,
    layout: o.Layout = None,
    accumulate: r.Accumulate = None,
    schedule: r.Schedule = None,
    warmup: r.Warmup = None,
    parallel: r.Parallel = None,
    eval_every: r.EvalEvery = None,
    keep_best: r.KeepBest = False,
    best_by: r.BestBy = None,
    patience: r.Patience = None,
    report_to: r.ReportTo = None,
    overwrite: o.Overwrite = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Tune on your own data or a task: a LoRA by default, with MeZO or a learned fine-tuner."""
    from zopeft.errors import run_error

    from .output import output
    from .spared import spare
    from .summary import dry_table, remedy, tune_table

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, full, peft),
        **o.training_flags(steps, batch_size, seed),
        **r.pacing_flags(accumulate, schedule, warmup),
        **r.evaluation_flags(eval_every, keep_best, best_by, patience, report_to),
        "task.name": ("--task", task),
        **o.data_flags(data, overrides),
        "data.split": ("--split", split),
        "data.validation": ("--validation", validation),
        "objective.name": ("--objective", objective),
        "objective.rewards": ("--reward", reward or None),
        "method.name": ("--method", method),
        "method.finetuner": ("--finetuner", finetuner),
        "method.lr": ("--lr", lr),
        "method.eps": ("--eps", eps),
        "training.layout": ("--layout", layout),
        "training.parallel": ("--parallel", parallel),
    }
    with output(json, debug) as screen:
        from zopeft.jobs.folder import stored_recipe
        from zopeft.recipe.load import load_recipe

        if resume_auto:
            from zopeft.jobs.continuing import is_begun
            from zopeft.ranks import begin

            resume = begin().said(is_begun(out))
        stored = stored_recipe(out) if resume else None
        checked = load_recipe("tune", recipe, overrides, flags, stored)
        spare(checked)
        from zopeft.jobs.tune import tune as run

        summary = run(checked, out, overwrite, resume, screen.listen, dry_run)
        if dry_run:
            screen.result(summary, dry_table(summary))
            return
        screen.result(summary, tune_table(summary))
        if summary["diverged"]:
            raise run_error(
                "tune", f"the run diverged: {summary['diverged']}", None, remedy(summary)
            )
