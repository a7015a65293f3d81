"""What is measured of a bench's runs: losses, their spread, wins and forward passes saved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zopeft.report.rows import Row

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


def searched(rows: Iterable[Row]) -> bool:
    """Whether learning rates were tried for any entry of a cell."""
    return any(row["role"] == "grid" for row in rows)


def reported_runs(rows: Sequence[Row], tried: bool = True) -> tuple[dict[int, Row], dict[int, Row]]:
    """Returns an entry's runs by seed: at its best learning rate, and at lr=auto.

    A grid that has grown since may have another best; runs at the former are left out. So are
    runs whose calibration took their whole budget, and those at the best rate on a seed that it
    was chosen on.

    Args:
        rows: The entry's in a cell.
        tried: Whether learning rates were tried in the cell (`searched`): where not, the runs at
            lr=auto are both.
    """
    grid = grid_losses(rows)
    best = best_of(grid)[0] if grid else None
    ran = [row for row in rows if row["steps"] or row["diverged"]]
    tuned_on = {row["seed"] for row in rows if row["role"] == "grid"}
    fresh = {r["seed"]: r for r in ran if r["role"] == "fresh" and r["lr"] == best}
    fresh = {seed: row for seed, row in fresh.items() if seed not in tuned_on}
    auto = {r["seed"]: r for r in ran if r["role"] == "auto"}
    return (fresh if tried else auto), auto


def best_of(tried: Mapping[float, float]) -> tuple[float, str]:
    """Returns the learning rate with the lowest score, and the edge that it is at.

    Args:
        tried: Learning rate to its score (the training loss at its end); scores that are
            not finite are the worst. Where all are, the lowest rate is the best.
    """
    rates = sorted(tried)
    lr = min(rates, key=lambda rate: tried[rate] if math.isfinite(tried[rate]) else math.inf)
    if len(rates) == 1:
        return lr, ""
    return lr, "low" if lr == rates[0] else "high" if lr == rates[-1] else ""


def mean(values: Sequence[float]) -> float | None:
    """Returns the mean; None of no values."""
    return statistics.fmean(values) if values else None


def grid_losses(rows: Iterable[Row]) -> dict[float, float]:
    """Returns learning rate to mean training loss of an entry's grid; infinite if diverged."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["role"] == "grid":
            found.setdefault(row["lr"], []).append(loss_of(row, "train_loss"))
    return {lr: sum(losses) / len(losses) for lr, losses in sorted(found.items())}


def loss_of(row: Row, key: str) -> float:
    """Returns one of a run's losses; infinite where it has none."""
    value = row[key]
    return math.inf if value is None else float(value)


def spread(rows: Iterable[Row], key: str) -> Spread | None:
    """Returns mean and spread of a number over runs; None where no run has it.

    A run that diverged has the loss infinity and no metric.
    """
    loss = key != "metric"
    values = [
        loss_of(row, key) for row in rows if row[key] is not None or (loss and row["diverged"])
    ]
    if not values:
        return None
    middle = sum(values) / len(values)
    many = len(values) > 1 and math.isfinite(middle)
    return Spread(middle, statistics.stdev(values) if many else 0.0, len(values))


def wins(mine: dict[int, Row], theirs: dict[int, Row], key: str) -> int:
    """Returns on how many of the seeds that both have run one loss is below the other."""
    return sum(loss_of(mine[s], key) < loss_of(theirs[s], key) for s in mine.keys() & theirs.keys())


def ratios(auto: dict[int, Row], best: dict[int, Row]) -> list[float]:
    """Returns each seed's loss at lr=auto over that at the best learning rate."""
    pairs = [
        (loss_of(auto[s], "train_loss"), loss_of(best[s], "train_loss")) for s in auto if s in best
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
        whole = [loss for loss in part if loss is not None]
        level = statistics.fmean(whole) if len(whole) == len(part) else math.inf
        found.append((float(curve[last - 1][0] or 0), level))
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
