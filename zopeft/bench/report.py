"""What the rows of a bench say: pure functions from rows to tables.

A cell's entries are compared with its baseline, MeZO. Losses are means over the reported
seeds, their spread is the sample standard deviation; comparisons are paired by seed, on
which all entries have seen the same batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zopeft.bench.grid import best_of
from zopeft.bench.rows import Row

BASELINE = "mezo"
SMOOTHING = 10
"""Points of a curve (a hundred a run) that are averaged: a tenth of the run."""


@dataclass(frozen=True)
class Spread:
    """A mean and how far seeds are apart.

    Attributes:
        mean: Mean over seeds; infinite where a run diverged.
        std: Sample standard deviation; 0 for one seed.
        count: Seeds.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Standing:
    """An entry in a cell.

    Attributes:
        entry: Its line, which is its identity.
        name: Its name in tables.
        lr: Its best learning rate.
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
    """

    model: str
    task: str
    space: str
    budget: int
    seeds: tuple[int, ...]
    metric_name: str
    standings: tuple[Standing, ...]


def report(rows: Sequence[Row]) -> list[CellReport]:
    """Returns what the rows say, one report a cell, in the order of the rows."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cell = (row["model"], row["task"], row["space"], row["settings"])
        cells.setdefault(cell, []).append(row)
    return [_cell(found) for found in cells.values()]


def _cell(rows: Sequence[Row]) -> CellReport:
    entries = list(dict.fromkeys(row["entry"] for row in rows))
    entries.sort(key=lambda entry: entry != BASELINE)
    standings = [_standing(entry, rows) for entry in entries]
    names = {str(row["metric_name"]) for row in rows if row.get("metric_name")}
    return CellReport(
        rows[0]["model"],
        rows[0]["task"],
        rows[0]["space"],
        rows[0]["budget"],
        tuple(sorted({row["seed"] for row in rows if row["role"] == "fresh"})),
        min(names) if names else "",
        tuple(standings),
    )


def _standing(entry: str, rows: Sequence[Row]) -> Standing:
    mine = [row for row in rows if row["entry"] == entry]
    tried = grid_losses(mine)
    lr, edge = best_of(tried) if tried else (None, "")
    fresh, auto = reported_runs(mine)
    base_fresh, base_auto = reported_runs([row for row in rows if row["entry"] == BASELINE])
    reach = reaching(fresh, base_fresh)
    is_base = entry == BASELINE
    reported = [*fresh.values(), *auto.values()]
    rates = [row["lr"] for row in auto.values() if row["lr"]]
    ratios = _ratios(auto, fresh)
    return Standing(
        entry=entry,
        name=mine[0]["name"],
        lr=lr,
        edge=edge,
        grid_loss=None if lr is None else tried[lr],
        train=spread(fresh.values(), "train_loss"),
        validation=spread(fresh.values(), "val_loss"),
        metric=spread(fresh.values(), "metric"),
        reach=_mean([own for own, _ in reach]),
        reached=len(reach),
        saving=_mean([1 - own / theirs for own, theirs in reach]),
        wins=None if is_base else wins(fresh, base_fresh, "train_loss"),
        wins_validation=None if is_base else wins(fresh, base_fresh, "val_loss"),
        pairs=len(fresh.keys() & base_fresh.keys()),
        auto_lr=math.exp(statistics.fmean(map(math.log, rates))) if rates else None,
        auto=spread(auto.values(), "train_loss"),
        auto_ratio=_mean(ratios),
        wins_auto=None if is_base else wins(auto, base_auto, "train_loss"),
        pairs_auto=len(auto.keys() & base_auto.keys()),
        diverged=sum(row["diverged"] for row in reported),
        runs=len(reported),
        step_seconds=_mean([row["seconds"] / row["steps"] for row in reported if row["steps"]]),
        peak_bytes=max((row["peak_bytes"] or 0 for row in reported), default=0) or None,
    )


def reported_runs(rows: Sequence[Row]) -> tuple[dict[int, Row], dict[int, Row]]:
    """Returns an entry's runs by seed: at its best learning rate, and at lr=auto.

    A grid that has grown since may have another best; runs at the former are left out.
    So are runs whose calibration took their whole budget.
    """
    tried = grid_losses(rows)
    best = best_of(tried)[0] if tried else None
    ran = [row for row in rows if row["steps"] or row["diverged"]]
    fresh = {r["seed"]: r for r in ran if r["role"] == "fresh" and r["lr"] == best}
    return fresh, {r["seed"]: r for r in ran if r["role"] == "auto"}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def grid_losses(rows: Iterable[Row]) -> dict[float, float]:
    """Returns learning rate to mean training loss of an entry's grid; infinite if diverged."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["role"] == "grid":
            found.setdefault(row["lr"], []).append(_loss(row, "train_loss"))
    return {lr: sum(losses) / len(losses) for lr, losses in sorted(found.items())}


def _loss(row: Row, key: str) -> float:
    value = row[key]
    return math.inf if value is None else float(value)


def spread(rows: Iterable[Row], key: str) -> Spread | None:
    """Returns mean and spread of a number over runs; None where no run has it.

    A run that diverged has the loss infinity and no metric.
    """
    loss = key != "metric"
    values = [_loss(row, key) for row in rows if row[key] is not None or (loss and row["diverged"])]
    if not values:
        return None
    mean = sum(values) / len(values)
    many = len(values) > 1 and math.isfinite(mean)
    return Spread(mean, statistics.stdev(values) if many else 0.0, len(values))


def wins(mine: dict[int, Row], theirs: dict[int, Row], key: str) -> int:
    """Returns on how many of the seeds that both have run one loss is below the other."""
    return sum(_loss(mine[s], key) < _loss(theirs[s], key) for s in mine.keys() & theirs.keys())


def _ratios(auto: dict[int, Row], best: dict[int, Row]) -> list[float]:
    """Returns each seed's loss at lr=auto over that at the best learning rate."""
    pairs = [
        (_loss(auto[s], "train_loss"), _loss(best[s], "train_loss")) for s in auto if s in best
    ]
    return [one / other for one, other in pairs if math.isfinite(other) and other > 0]


def smoothed(curve: Sequence[Sequence[float | None]]) -> list[tuple[float, float]]:
    """Returns (forward passes, mean loss of the tenth of the run that ends there).

    Args:
        curve: [forward passes, loss] pairs, equal parts of a run.
    """
    width = max(1, round(len(curve) / SMOOTHING))
    found = []
    for last in range(width, len(curve) + 1):
        part = [loss for _, loss in curve[last - width : last]]
        mean = math.inf if None in part else statistics.fmean(x for x in part if x is not None)
        found.append((float(curve[last - 1][0] or 0), mean))
    return found


def first_below(curve: Sequence[Sequence[float | None]], loss: float) -> float | None:
    """Returns the forward passes after which the smoothed curve is first at or below `loss`."""
    return next((at for at, value in smoothed(curve) if value <= loss), None)


def reaching(mine: dict[int, Row], base: dict[int, Row]) -> list[tuple[float, float]]:
    """Returns, for each seed that reaches MeZO's final loss, own and MeZO's forward passes.

    The final loss is the last point of MeZO's smoothed curve on the same seed; MeZO's own
    count is its first time there, not its budget.
    """
    pairs = []
    for seed in sorted(mine.keys() & base.keys()):
        if base[seed]["diverged"] or not base[seed]["curve"]:
            continue
        target = smoothed(base[seed]["curve"])[-1][1]
        own = first_below(mine[seed]["curve"], target)
        theirs = first_below(base[seed]["curve"], target)
        if own is not None and theirs and not mine[seed]["diverged"]:
            pairs.append((own, theirs))
    return pairs


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
