"""The flags of how a tuning run is paced, measured, reported and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .options import ALONG, METHOD, RUN, STEPS, Flags, default_of

Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        rich_help_panel=METHOD,
        metavar="NAME",
        help="What is optimised: answer, choice, metric or reward (zopeft list objectives).",
    ),
]
Reward = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        rich_help_panel=METHOD,
        metavar="FILE.py:FUNCTION",
        help="A reward of your own, called as TRL's GRPO calls them; may be given several times.",
    ),
]
Accumulate = Annotated[
    str | None,
    typer.Option(
        "--accumulate",
        rich_help_panel=STEPS,
        show_default=default_of("training.accumulation"),
        metavar="N",
        help="Batches a step; their losses are averaged.",
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        rich_help_panel=STEPS,
        show_default=default_of("training.schedule"),
        metavar="NAME",
        help="Learning rate over the steps: constant, linear, cosine.",
    ),
]
Warmup = Annotated[
    str | None,
    typer.Option(
        "--warmup",
        rich_help_panel=STEPS,
        show_default=default_of("training.warmup"),
        metavar="N",
        help="Steps over which the rate rises from 0.",
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        rich_help_panel=STEPS,
        show_default=default_of("training.parallel"),
        metavar="rows|probes|both",
        help="What several processes (torchrun) share out of a step.",
    ),
]
EvalEvery = Annotated[
    str | None,
    typer.Option(
        "--eval-every",
        rich_help_panel=ALONG,
        show_default=default_of("training.eval_steps"),
        metavar="N",
        help="Measure every N steps, and at the end.",
    ),
]
KeepBest = Annotated[
    bool,
    typer.Option(
        "--keep-best",
        rich_help_panel=ALONG,
        help="The result is the weights with the lowest validation loss.",
    ),
]
BestBy = Annotated[
    str | None,
    typer.Option(
        "--best-by",
        rich_help_panel=ALONG,
        show_default=default_of("training.best_by"),
        metavar="loss|metric",
        help="What --keep-best and --patience go by.",
    ),
]
Patience = Annotated[
    str | None,
    typer.Option(
        "--patience",
        rich_help_panel=ALONG,
        show_default=default_of("training.patience"),
        metavar="K",
        help="Stop after K evaluations without a lower loss.",
    ),
]
ReportTo = Annotated[
    str | None,
    typer.Option(
        "--report-to",
        rich_help_panel=ALONG,
        show_default=default_of("training.report_to"),
        metavar="NAME",
        help="Also tell tensorboard, wandb or trackio.",
    ),
]
ResumeOrBegin = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=RUN,
        help="Continue the run in --out; --resume auto: continue it or begin it.",
    ),
]
ResumeAuto = Annotated[bool, typer.Option("--resume-auto", hidden=True)]


def pacing_flags(accumulate: str | None, schedule: str | None, warmup: str | None) -> Flags:
    """Returns the flags of how a run's steps are paced."""
    return {
        "training.accumulation": ("--accumulate", accumulate),
        "training.schedule": ("--schedule", schedule),
        "training.warmup": ("--warmup", warmup),
    }


def evaluation_flags(
    every: str | None,
    keep_best: bool,
    best_by: str | None,
    patience: str | None,
    report_to: str | None,
) -> Flags:
    """Returns the flags of what is measured and reported during a run."""
    return {
        "training.eval_steps": ("--eval-every", every),
        "training.keep_best": ("--keep-best", keep_best or None),
        "training.best_by": ("--best-by", best_by),
        "training.patience": ("--patience", patience),
        "training.report_to": ("--report-to", report_to),
    }


def with_auto(words: Sequence[str]) -> list[str]:
    """Returns the words of ``zopeft tune`` with ``--resume auto`` as one."""
    found = list(words)
    if found[:1] == ["tune"]:
        for at in range(len(found) - 1, 0, -1):
            if found[at] == "--resume=auto":
                found[at] = "--resume-auto"
            elif found[at : at + 2] == ["--resume", "auto"]:
                found[at : at + 2] = ["--resume-auto"]
    return found
