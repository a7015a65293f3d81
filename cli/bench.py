"""``zopeft bench``: compare methods and fine-tuners on equal budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from zopeft.errors import input_error

from . import options as o

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]... [KEY.SUB=VALUE]...",
        help="Aliases, hub ids, folders or 'embedded', and recipe overrides.",
        show_default=False,
    ),
]
BENCH = "The comparison"


def _several(flag: str, metavar: str, text: str) -> Any:
    return typer.Option(
        flag, metavar=metavar, help=f"{text}; several times.", rich_help_panel=BENCH
    )


def _count(flag: str, text: str) -> Any:
    """Returns the flag of a number of the bench, with its default."""
    usual = o.default_of(f"bench.{flag[2:].replace('-', '_')}")
    return typer.Option(flag, metavar="N", help=text, show_default=usual, rich_help_panel=BENCH)


Spaces = Annotated[list[str] | None, _several("--space", "NAME", "full, lora, prefix, ...")]
Methods = Annotated[
    list[str] | None,
    _several("--method", "ENTRY", "Who competes, as 'mezo clip=1' or 'finetuner F'"),
]
FineTuners = Annotated[list[str] | None, _several("--finetuner", "PATH|ID", "A fine-tuner")]
Seeds = Annotated[str | None, _count("--seeds", "Reported seeds.")]
TuneSeeds = Annotated[str | None, _count("--tune-seeds", "Seeds that choose the lr.")]
Forwards = Annotated[str | None, _count("--forwards", "Forward passes of a run.")]
Grid = Annotated[str | None, _count("--grid", "Learning rates to try; 0: lr auto alone.")]
Workers = Annotated[str | None, _count("--workers", "Processes, one thread each.")]
Small = Annotated[
    bool,
    typer.Option(
        "--small",
        help="The recipe's small twin: embedded model, small budget.",
        rich_help_panel=BENCH,
    ),
]
Report = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="DIR",
        help="Only write a bench's report again.",
        rich_help_panel=o.RUN,
    ),
]


def bench(
    words: Words = None,
    task: o.Tasks = None,
    data: o.Data = None,
    space: Spaces = None,
    method: Methods = None,
    finetuner: FineTuners = None,
    seeds: Seeds = None,
    tune_seeds: TuneSeeds = None,
    forwards: Forwards = None,
    grid: Grid = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = None,
    workers: Workers = None,
    recipe: o.RecipeOption = None,
    small: Small = False,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    dtype: o.Dtype = None,
    out: o.Out = None,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    report: Report = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Compare methods on equal forward passes, each at its best learning rate and at auto."""
    from .output import output

    overrides = [word for word in words or () if o.is_override(word)]
    models = [word for word in words or () if not o.is_override(word)]
    flags: o.Flags = {
        **o.model_flags(None, dtype, load_in_8bit, load_in_4bit),
        "bench.models": ("MODEL", models or None),
        "bench.tasks": ("--task", task or None),
        "bench.spaces": ("--space", space or None),
        "bench.entries": ("--method", method or None),
        "bench.finetuners": ("--finetuner", finetuner or None),
        "bench.seeds": ("--seeds", seeds),
        "bench.tune_seeds": ("--tune-seeds", tune_seeds),
        "bench.forwards": ("--forwards", forwards),
        "bench.grid": ("--grid", grid),
        "bench.workers": ("--workers", workers),
        "task.data": ("--data", data),
        "training.batch_size": ("--batch-size", batch_size),
        "training.seed": ("--seed", seed),
    }
    with output(json, debug) as screen:
        from zopeft.jobs.bench.bench import bench as run
        from zopeft.jobs.bench.bench import render
        from zopeft.jobs.bench.cells import Request

        if report is not None:
            if words or method or finetuner or recipe or out:
                raise input_error("--report", "takes no further words", do="leave them out")
            summary = render(report)
        else:
            request = Request(recipe, overrides, flags, small)
            summary = run(request, out, overwrite, resume, listener=screen.listen)
        if not json:
            _show(screen, summary)
        screen.result(summary)


def _show(screen: Any, summary: Mapping[str, Any]) -> None:
    """Prints a table a cell, and the wins in all of them."""
    from zopeft.report.rows import read_rows
    from zopeft.report.standings import report
    from zopeft.report.tables import brief, short_name, title, total_columns, total_rows

    cells = report(read_rows(summary["out"]))
    for cell in cells:
        screen.table(_table(title(cell), *brief(cell)))
    if len(cells) > 1 and total_rows(cells):
        body = [[short_name(name, 60), *rest] for name, *rest in total_rows(cells)]
        screen.table(_table("wins over MeZO", total_columns(), body))
    files = ", ".join(("report.md", *summary["pictures"]))
    screen.text(f"spreads and all columns: {summary['out']}/{files}")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box

    from .output import rows_table

    table = rows_table(title, columns, rows)
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True
    return table
