"""What the rows of a bench say: pure functions from rows to tables.

A cell's entries are compared with its baseline, MeZO. Losses are means over the reported
seeds, their spread is the sample standard deviation; comparisons are paired by seed, on
which all entries have seen the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zopeft.report.measures import (
    Spread,
    best_of,
    grid_losses,
    mean,
    ratios,
    reaching,
    reported_runs,
    searched,
    spread,
    wins,
)
from zopeft.report.rows import Row

BASELINE = "mezo"


@dataclass(frozen=True)
class Standing:
    """An entry in a cell.

    Attributes:
        entry: Its line, which is its identity.
        name: Its name in tables.
        lr: Its best learning rate; None where none was tried.
        edge: "high" or "low" where that is at the grid's edge, else "".
        grid_loss: Training loss on the tuning seeds at that rate.
        train: Training loss of the last tenth, reported seeds.
        validation: Validation loss.
        metric: The task's metric.
        reach: Forward passes to MeZO's final loss, mean over the seeds that get there.
        reached: Seeds that get there.
        saving: ``1 - reach / MeZO's own first hit``, mean over those seeds.
        wins: Seeds on which the training loss is below MeZO's; None for MeZO itself.
        wins_validation: The same for the validation loss.
        pairs: Seeds that both have run.
        auto_lr: Geometric mean of the learning rates that lr=auto chose.
        auto: Training loss at lr=auto.
        auto_ratio: That over the training loss at the best learning rate, same seeds.
        wins_auto: Seeds on which lr=auto is below MeZO's lr=auto.
        pairs_auto: Seeds that both have run at lr=auto.
        diverged: Reported runs that diverged, those at lr=auto included.
        runs: Reported runs.
        step_seconds: Mean time of a step, reported runs.
        peak_bytes: Most GPU memory of a reported run; None on a CPU.
    """

    entry: str
    name: str
    lr: float | None
    edge: str
    grid_loss: float | None
    train: Spread | None
    validation: Spread | None
    metric: Spread | None
    reach: float | None
    reached: int
    saving: float | None
    wins: int | None
    wins_validation: int | None
    pairs: int
    auto_lr: float | None
    auto: Spread | None
    auto_ratio: float | None
    wins_auto: int | None
    pairs_auto: int
    diverged: int
    runs: int
    step_seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class CellReport:
    """The entries of one model, task and space.

    Attributes:
        model: The model.
        task: The task.
        space: What is trained.
        budget: Forward passes a run.
        seeds: Reported seeds.
        metric_name: "accuracy" or "f1"; "" where none was measured.
        standings: The entries, MeZO first.
        searched: Whether learning rates were tried; else all runs are those at lr=auto.
    """

    model: str
    task: str
    space: str
    budget: int
    seeds: tuple[int, ...]
    metric_name: str
    standings: tuple[Standing, ...]
    searched: bool


def report(rows: Sequence[Row]) -> list[CellReport]:
    """Returns what the rows say, one report a cell, in the order of the rows."""
    return [_cell(found) for found in by_cell(rows)]


def by_cell(rows: Sequence[Row]) -> list[list[Row]]:
    """Returns the rows of each cell, in their order."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cell = (row["model"], row["task"], row["space"], row["settings"])
        cells.setdefault(cell, []).append(row)
    return list(cells.values())


def _cell(rows: Sequence[Row]) -> CellReport:
    entries = list(dict.fromkeys(row["entry"] for row in rows))
    entries.sort(key=lambda entry: entry != BASELINE)
    tried = searched(rows)
    standings = [_standing(entry, rows, tried) for entry in entries]
    names = {str(row["metric_name"]) for row in rows if row.get("metric_name")}
    return CellReport(
        rows[0]["model"],
        rows[0]["task"],
        rows[0]["space"],
        rows[0]["budget"],
        tuple(
            sorted({row["seed"] for row in rows if row["role"] == ("fresh" if tried else "auto")})
        ),
        min(names) if names else "",
        tuple(standings),
        tried,
    )


def _standing(entry: str, rows: Sequence[Row], tried: bool) -> Standing:
    mine = [row for row in rows if row["entry"] == entry]
    grid = grid_losses(mine)
    lr, edge = best_of(grid) if grid else (None, "")
    fresh, auto = reported_runs(mine, tried)
    base_fresh, base_auto = reported_runs([r for r in rows if r["entry"] == BASELINE], tried)
    reach = reaching(fresh, base_fresh)
    is_base = entry == BASELINE
    reported = [*(fresh.values() if tried else ()), *auto.values()]
    rates = [row["lr"] for row in auto.values() if row["lr"]]
    found = ratios(auto, fresh)
    return Standing(
        entry=entry,
        name=mine[0]["name"],
        lr=lr,
        edge=edge,
        grid_loss=None if lr is None else grid[lr],
        train=spread(fresh.values(), "train_loss"),
        validation=spread(fresh.values(), "val_loss"),
        metric=spread(fresh.values(), "metric"),
        reach=mean([own for own, _ in reach]),
        reached=len(reach),
        saving=mean([1 - own / theirs for own, theirs in reach]),
        wins=None if is_base else wins(fresh, base_fresh, "train_loss"),
        wins_validation=None if is_base else wins(fresh, base_fresh, "val_loss"),
        pairs=len(fresh.keys() & base_fresh.keys()),
        auto_lr=math.exp(statistics.fmean(map(math.log, rates))) if rates else None,
        auto=spread(auto.values(), "train_loss"),
        auto_ratio=mean(found),
        wins_auto=None if is_base else wins(auto, base_auto, "train_loss"),
        pairs_auto=len(auto.keys() & base_auto.keys()),
        diverged=sum(row["diverged"] for row in reported),
        runs=len(reported),
        step_seconds=mean([row["seconds"] / row["steps"] for row in reported if row["steps"]]),
        peak_bytes=max((row["peak_bytes"] or 0 for row in reported), default=0) or None,
    )


def totals(cells: Sequence[CellReport]) -> list[dict[str, Any]]:
    """Returns each entry's wins over MeZO in all cells together."""
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        for one in cell.standings:
            row = found.setdefault(one.entry, {"entry": one.entry, "name": one.name, "cells": 0})
            row["cells"] += 1
            for key in ("wins", "wins_validation", "pairs", "wins_auto", "pairs_auto"):
                row[key] = row.get(key, 0) + (getattr(one, key) or 0)
            row["edges"] = row.get("edges", 0) + bool(one.edge)
            row["diverged"] = row.get("diverged", 0) + one.diverged
    return list(found.values())


def plain(cells: Sequence[CellReport]) -> list[dict[str, Any]]:
    """Returns the reports as plain dicts for JSON; what is not finite becomes None."""
    return [_plain(asdict(cell)) for cell in cells]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
