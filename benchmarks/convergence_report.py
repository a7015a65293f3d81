"""What the rows of `convergence.py` say: tables in Markdown, and loss over steps as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SEARCHED = 0
"""The seed that rates are chosen on; the others are reported."""
SHARE = 10
"""The running mean that is drawn covers one in so many points of a run."""
# Okabe and Ito's colours, told apart by the colour-blind.
NOISES = {
    "gaussian": ("#000000", "-"),
    "binomial": ("#0072B2", "-"),
    "rademacher": ("#D55E00", "-"),
    "low rank 4": ("#009E73", "-"),
    "low rank 1": ("#CC79A7", "-"),
}
PRECISIONS = {
    "zopeft, fp32": ("#000000", "-"),
    "zopeft, bf16": ("#0072B2", "-"),
    "plain, fp32": ("#8A8A8A", "--"),
    "plain, bf16": ("#D55E00", "--"),
}
ALIKE = ("model", "task", "steps", "batch", "eps")
"""What rows must share to stand in one table."""


def _of(rows: list[dict[str, Any]], part: str, case: str) -> list[dict[str, Any]]:
    """The rows of a case that are like the newest of its part."""
    mine = [row for row in rows if row["part"] == part]
    newest = [mine[-1][key] for key in ALIKE] if mine else []
    return [r for r in mine if r["case"] == case and [r[key] for key in ALIKE] == newest]


def best_rate(rows: list[dict[str, Any]], case: str) -> float | None:
    """Returns the rate at which a case of part noise ends lowest on `SEARCHED`."""
    mine = [r for r in _of(rows, "noise", case) if r["seed"] == SEARCHED]
    ended = [r for r in mine if r["loss_after"] is not None]
    return min(ended, key=lambda r: r["loss_after"])["lr"] if ended else None


def reported(
    rows: list[dict[str, Any]], part: str, case: str, lr: float | None = None
) -> list[dict[str, Any]]:
    """Returns the newest row of each seed that a case is reported by, in the order of seeds.

    Args:
        rows: All rows.
        part: "noise" or "bf16".
        case: The case.
        lr: Of part noise, the rate; None for the best.
    """
    mine = _of(rows, part, case)
    if part == "noise":
        lr = best_rate(rows, case) if lr is None else lr
        mine = [r for r in mine if r["lr"] == lr and r["seed"] != SEARCHED]
    newest = {r["seed"]: r for r in mine}
    return [newest[seed] for seed in sorted(newest)]


def markdown(rows: list[dict[str, Any]], part: str, cases: Iterable[str]) -> str:
    """Returns a part's table; differences are from its first case, of the same rate and seeds."""
    first, *_ = cases = list(cases)
    lines = [
        f"| {part} | lr | seeds | loss after | difference, ± its error | mean loss of the run "
        "| drift |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        best = best_rate(rows, case)
        for lr in sorted({r["lr"] for r in _of(rows, part, case)}):
            mine = reported(rows, part, case, lr)
            beside = reported(rows, part, first, lr) if case != first else []
            if mine:
                star = " (best)" if lr == best and part == "noise" else ""
                cells = [case, f"{lr:g}{star}", f"{len(mine)}", *_numbers(mine, beside)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _numbers(mine: list[dict[str, Any]], beside: list[dict[str, Any]]) -> list[str]:
    """The cells of a table's line that are measured."""
    drifts = [f"{r['drift']:.2g}" for r in mine if r["drift"] is not None]
    drift = drifts[0] if drifts else ""
    lost = sum(r["diverged"] for r in mine)
    if lost:
        return [f"{lost} diverged", "", "", drift]
    after = [r["loss_after"] for r in mine]
    known = {r["seed"]: r["loss_after"] for r in beside if not r["diverged"]}
    gaps = [r["loss_after"] - known[r["seed"]] for r in mine if r["seed"] in known]
    gap = ""
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        gap = f"{statistics.fmean(gaps):+.3f} ± {error:.3f}"
    whole = statistics.fmean(r["loss_of_run"] for r in mine)
    return [
        f"{statistics.fmean(after):.3f} ({min(after):.3f} to {max(after):.3f})",
        gap,
        f"{whole:.3f}",
        drift,
    ]


def draw(groups: dict[str, dict[str, list[dict[str, Any]]]], file: Path) -> None:
    """Draws a panel a part: each case's mean over seeds, and the range of them.

    Args:
        groups: Part ("noise", "bf16") to case to the rows of its seeds.
        file: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("families of noise, fp32, each at its best rate", "precision, at one rate")
    styles = (NOISES, PRECISIONS)
    for axes, (part, cases), style, title in zip(
        panels, groups.items(), styles, titles, strict=True
    ):
        for case, look in style.items():
            if cases.get(case):
                _case(axes, case, cases[case], *look, rate=part == "noise")
        rates = {row["lr"] for rows in cases.values() for row in rows}
        at = f" (lr {min(rates):g})" if part == "bf16" and len(rates) == 1 else ""
        axes.set_title(title + at, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(left=0)
        axes.legend(fontsize=8, frameon=False)
    row = next(row for cases in groups.values() for rows in cases.values() for row in rows)
    panels[0].set_ylabel("training loss of the probes, nats", fontsize=9)
    figure.suptitle(
        f"{row['model']}, {row['task']}, full weights, batch {row['batch']}: running mean over "
        f"{row['steps'] // SHARE} steps; line: mean over seeds, band: lowest to highest seed",
        fontsize=9,
    )
    figure.savefig(file, dpi=110)


def _case(
    axes: Any, case: str, rows: Sequence[dict[str, Any]], color: str, line: str, rate: bool
) -> None:
    width = math.ceil(rows[0]["steps"] / len(max((r["curve"] for r in rows), key=len)))
    curves = [_smooth(row["curve"]) for row in rows]
    length = min(map(len, curves))
    values = np.array([curve[:length] for curve in curves])
    steps = width * np.arange(1, length + 1)
    seeds = f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"
    label = f"{case}, lr {rows[0]['lr']:g}, {seeds}" if rate else f"{case}, {seeds}"
    if any(row["diverged"] for row in rows):
        label += ", diverged"
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0)
    axes.plot(steps, values.mean(0), color=color, linestyle=line, linewidth=1.6, label=label)


def _smooth(curve: Sequence[float | None]) -> np.ndarray:
    """Returns the mean over the points of a tenth of a run that end at each point."""
    values = np.array([math.nan if value is None else value for value in curve])
    width = max(1, len(values) // SHARE)
    return np.array([np.nanmean(values[max(0, k - width + 1) : k + 1]) for k in range(len(values))])
