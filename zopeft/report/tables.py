"""A bench's tables as text: the same rows for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zopeft.report.measures import Spread
from zopeft.report.standings import CellReport, Standing, totals

OF_A_SEARCH = ("lr", "auto", "ratio", "auto wins")
"""Columns that say nothing where no learning rates were tried."""
NOTES = {
    "train loss": "Losses are of the last tenth of a run: mean ± standard deviation over the "
    "reported seeds, each entry at the learning rate that was best on the tuning seeds (where none "
    "were tried: at lr=auto).",
    "lr": "`<` or `>` beside a learning rate: it is the lowest or highest one tried, so the true "
    "best may lie beyond.",
    "forwards": "forwards: forward passes (in thousands: k) until a run's smoothed loss is at "
    "MeZO's final one, in brackets how many seeds get there; saving: against MeZO's own first time "
    "there.",
    "wins": "wins: seeds on which the entry's loss is below MeZO's, same batches; training loss, "
    "then validation loss.",
    "auto": "auto: training loss at lr=auto within the same budget; ratio: that over the loss at "
    "the best learning rate, same seeds.",
    "s/step": "s/step: seconds a step, validation left out; GB: most GPU memory of a run.",
}
"""What columns mean, told where there is one of them."""


def title(cell: CellReport) -> str:
    """Returns the heading of a cell."""
    seeds = ", ".join(map(str, cell.seeds))
    return (
        f"{Path(cell.model).name}, {cell.task}, {cell.space}: {cell.budget} forward passes a run, "
        f"reported seeds {seeds or 'none yet'}"
    )


def columns(cell: CellReport) -> list[str]:
    """Returns the names of a cell's columns."""
    metric = [cell.metric_name] if cell.metric_name else []
    every = [
        *("entry", "lr", "train loss", "val loss", *metric, "forwards", "saving", "wins"),
        *("auto lr", "auto", "ratio", "auto wins", "s/step"),
        *(["GB"] if any(one.peak_bytes for one in cell.standings) else []),
    ]
    return [name for name in every if cell.searched or name not in OF_A_SEARCH]


def cells_of_row(one: Standing, cell: CellReport) -> list[str]:
    """Returns an entry's cells, in the order of `columns`."""
    rate = "-" if one.lr is None else f"{one.lr:.2e}" + {"high": ">", "low": "<"}.get(one.edge, "")
    both = f"{_share(one.wins, one.pairs)}, {_share(one.wins_validation, one.pairs)}"
    told = {
        "entry": one.name,
        "lr": rate,
        "train loss": _spread(one.train) + _diverged(one),
        "val loss": _spread(one.validation),
        cell.metric_name: _spread(one.metric),
        "forwards": _forwards(one),
        "saving": _percent(one.saving),
        "wins": "-" if one.wins is None else both,
        "auto lr": "-" if one.auto_lr is None else f"{one.auto_lr:.2e}",
        "auto": _spread(one.auto),
        "ratio": "-" if one.auto_ratio is None else _number(one.auto_ratio),
        "auto wins": _share(one.wins_auto, one.pairs_auto),
        "s/step": "-" if one.step_seconds is None else f"{one.step_seconds:.3g}",
        "GB": f"{(one.peak_bytes or 0) / 1e9:.1f}",
    }
    return [told[name] for name in columns(cell)]


def brief(cell: CellReport) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows that fit a terminal: fewer of them, and short."""
    metric = [cell.metric_name] if cell.metric_name else []
    rates = ("lr", "auto") if cell.searched else ("auto lr", "val loss")
    head = ["entry", rates[0], "train loss", *metric, "saving", "wins", rates[1]]
    rows = []
    for one in cell.standings:
        full = dict(zip(columns(cell), cells_of_row(one, cell), strict=True))
        short = {key: full[key].partition(" ")[0] for key in (rates[1], *metric)}
        short["entry"] = short_name(one.name, 60)
        short["train loss"] = full["train loss"].replace(" ± ", "±").partition(" ")[0]
        rows.append([{**full, **short}[name] for name in head])
    return head, rows


def short_name(name: str, most: int) -> str:
    """Returns a name with its paths cut to their last part, `most` letters at most."""
    text = " ".join(word if "/" not in word else Path(word).name for word in name.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def total_columns() -> list[str]:
    """Returns the names of the columns of the wins in all cells."""
    return ["entry", "cells", "wins, train", "wins, val", "wins, auto", "edges", "diverged"]


def total_rows(cells: Sequence[CellReport]) -> list[list[str]]:
    """Returns each entry's wins in all cells, without MeZO."""
    rows = []
    for one in totals(cells):
        if one["entry"] == "mezo":
            continue
        rows.append(
            [
                one["name"],
                str(one["cells"]),
                _share(one["wins"], one["pairs"]),
                _share(one["wins_validation"], one["pairs"]),
                _share(one["wins_auto"], one["pairs_auto"]),
                str(one["edges"]),
                str(one["diverged"]),
            ]
        )
    return rows


def markdown(cells: Sequence[CellReport], about: dict[str, Any], pictures: Sequence[str]) -> str:
    """Returns the whole report as Markdown.

    Args:
        cells: What the rows say.
        about: What stands under the heading, name to value.
        pictures: Names of PNG files beside it.
    """
    lines = ["# zopeft bench", ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value] + [""]
    if len(total_rows(cells)):
        lines += ["## Wins over MeZO", "", *_table(total_columns(), total_rows(cells)), ""]
    lines += [f"![{name}]({name})" for name in pictures] + [""]
    for cell in cells:
        body = [cells_of_row(one, cell) for one in cell.standings]
        lines += [f"## {title(cell)}", "", *_table(columns(cell), body), ""]
    told = {name for cell in cells for name in columns(cell)}
    notes = [f"- {note}" for name, note in NOTES.items() if name in told]
    lines += ["## How to read this", "", *notes, ""]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    text = _number(found.mean)
    return f"{text} ± {_number(found.std)}" if found.count > 1 and found.std else text


def _diverged(one: Standing) -> str:
    return f" ({one.diverged}/{one.runs} diverged)" if one.diverged else ""


def _forwards(one: Standing) -> str:
    if one.reach is None:
        return "never" if one.pairs else "-"
    count = f"{one.reach / 1000:.2f}k" if one.reach >= 1000 else f"{one.reach:.0f}"
    return f"{count} ({one.reached}/{one.pairs})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}"


def _share(part: int | None, whole: int) -> str:
    return "-" if part is None or not whole else f"{part}/{whole}"
