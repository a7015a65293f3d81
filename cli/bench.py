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
Spaces = Annotated[
    list[str] | None,
    typer.Option("--space", metavar="NAME", help="full, lora, prefix, ...; several times."),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="ENTRY",
        help="Who competes, as 'mezo clip=1' or 'finetuner F'; several times.",
    ),
]
FineTuners = Annotated[
    list[str] | None,
    typer.Option("--finetuner", metavar="PATH|ID", help="A fine-tuner; several times."),
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="N", help="Reported seeds.")]
TuneSeeds = Annotated[
    str | None, typer.Option("--tune-seeds", metavar="N", help="Seeds that choose the lr.")
]
Forwards = Annotated[
    str | None, typer.Option("--forwards", metavar="N", help="Forward passes of a run.")
]
Grid = Annotated[str | None, typer.Option("--grid", metavar="N", help="Learning rates to try.")]
Workers = Annotated[
    str | None, typer.Option("--workers", metavar="N", help="Processes, one thread each.")
]
Small = Annotated[
    bool, typer.Option("--small", help="The recipe's small twin: embedded model, small budget.")
]
Report = Annotated[
    str | None, typer.Option("--report", metavar="DIR", help="Only write a bench's report again.")
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
    screen.text(f"spreads and all columns: {summary['out']}/report.md, curves.png, rates.png")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box

    from .output import rows_table

    table = rows_table(title, columns, rows)
    table.box, table.padding = box.SIMPLE_HEAD, (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True
    return table
