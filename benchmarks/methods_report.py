"""What the rows of `methods.py` say: a table in Markdown, and a picture of every method."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BASELINE = "mezo"
SPACES = ("full", "lora")
MARKS = {"sst2": "o", "squad": "s", "copa": "^"}
# Okabe and Ito's colours, told apart by the colour-blind.
BETTER, WORSE, EVEN = "#0072B2", "#D55E00", "#666666"
WIDEST = (0.35, 4.0)
"""What the picture shows of losses relative to MeZO's; beyond it a mark stands at the edge."""


@dataclass
class Cell:
    """An entry on one task in one space.

    Args:
        losses: Final validation loss of each reported seed; None where it diverged.
        before: The loss of the untrained model, of each seed.
    """

    losses: dict[int, float | None] = field(default_factory=dict)
    before: dict[int, float] = field(default_factory=dict)

    @property
    def diverged(self) -> int:
        """How many seeds diverged."""
        return sum(loss is None for loss in self.losses.values())

    def counted(self, seed: int) -> float:
        """Returns a seed's loss; of a diverged run that of the untrained model."""
        loss = self.losses[seed]
        return self.before[seed] if loss is None else loss

    def text(self) -> str:
        """Returns mean and spread of what did not diverge, and how many did."""
        good = [loss for loss in self.losses.values() if loss is not None]
        if not self.losses:
            return "no rate"
        lost = f" ({self.diverged} div)" if self.diverged else ""
        if not good:
            return "diverged"
        spread = f" ± {statistics.stdev(good):.3f}" if len(good) > 1 else ""
        return f"{statistics.fmean(good):.3f}{spread}{lost}"


@dataclass
class Standing:
    """An entry in one space.

    Args:
        name: The entry.
        cells: Task to cell.
        ratios: Task to the loss of each seed over MeZO's of the same seed.
    """

    name: str
    cells: dict[str, Cell]
    ratios: dict[str, list[float]]

    @property
    def mean(self) -> float:
        """Geometric mean over tasks and seeds; infinite where there is none."""
        logs = [math.log(ratio) for own in self.ratios.values() for ratio in own]
        return math.exp(statistics.fmean(logs)) if logs else math.inf

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithms, tasks' own means taken off."""
        logs = [[math.log(r) for r in own] for own in self.ratios.values() if own]
        apart = [log - statistics.fmean(own) for own in logs for log in own]
        free = len(apart) - len(logs)
        return math.sqrt(sum(gap**2 for gap in apart) / free) if free > 0 else 0.0

    @property
    def verdict(self) -> str:
        """Returns "better", "worse" or "even": beyond two standard errors of the mean or not.

        Without a rate, or where nothing is left of all runs, worse; of single runs, even.
        """
        runs = sum(map(len, self.ratios.values()))
        if not runs or all(cell.diverged == len(cell.losses) for cell in self.cells.values()):
            return "worse"
        if runs == len(self.ratios):
            return "even"
        error = self.spread / math.sqrt(runs)
        log = math.log(self.mean)
        return "even" if abs(log) <= 2 * error else "better" if log < 0 else "worse"


def read(
    folder: Path, forwards: int
) -> tuple[dict[str, dict[str, dict[str, Cell]]], dict[str, Row], Row]:
    """Returns space to entry to task to cell, entry to its cost, and what runs have in common.

    Args:
        folder: Where the rows are.
        forwards: Forward passes of the runs that count; there may be shorter ones, too.
    """
    cells: dict[str, dict[str, dict[str, Cell]]] = {space: {} for space in SPACES}
    costs: dict[str, Row] = {}
    told: Row = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            if path.stem == "cost":
                costs[row["entry"]] = row
                continue
            # An entry without a first rate has no runs of any length.
            if row["kind"] == "refused" or row.get("budget", forwards) != forwards:
                continue
            if row["kind"] == "first" and row["lr"] is not None:
                continue
            found = cells[row["space"]].setdefault(row["entry"], {})
            cell = found.setdefault(row["task"], Cell())
            if row["kind"] == "run":
                cell.losses[row["seed"]] = row["loss_after"]
                cell.before[row["seed"]] = row["loss_before"]
                told = row
    return cells, costs, told


def standings(entries: dict[str, dict[str, Cell]]) -> list[Standing]:
    """Returns a space's entries, the lowest loss relative to MeZO's first."""
    found = []
    for name, cells in entries.items():
        ratios: dict[str, list[float]] = {}
        for task, cell in cells.items():
            base = entries[BASELINE].get(task, Cell())
            seeds = sorted(cell.losses.keys() & base.losses.keys())
            ratios[task] = [cell.counted(s) / base.counted(s) for s in seeds]
        found.append(Standing(name, cells, ratios))
    return sorted(found, key=lambda one: (one.mean, one.name != BASELINE))


def markdown(ranked: dict[str, list[Standing]], costs: dict[str, Row]) -> str:
    """Returns the tables, one a space."""
    lines: list[str] = []
    for space, found in ranked.items():
        tasks = [task for task in MARKS if any(one.cells.get(task) for one in found)]
        head = ["method", "to MeZO", *tasks, "forwards", "step", "state", "transient"]
        lines += ["", f"**{space}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for one in found:
            ratio = f"{one.mean:.2f}" if math.isfinite(one.mean) else "-"
            losses = [one.cells[t].text() if t in one.cells else "" for t in tasks]
            cost = _cost(costs.get(one.name, costs.get(one.name.split(",")[0])), space)
            lines.append("| " + " | ".join([f"`{one.name}`", ratio, *losses, *cost]) + " |")
    return "\n".join(lines[1:])


def _cost(row: Row | None, space: str) -> list[str]:
    if row is None or space not in row:
        return [""] * 4
    own, memory = row[space], row["memory"]
    both = f"{own['ratio_to_two_forwards']:.2f} ({own['ratio_to_own_forwards']:.2f})"
    return [
        str(own["forwards_a_step"]),
        both,
        f"{memory['state_bytes']:.2g}",
        f"{memory['transient_bytes']:.2g}",
    ]


def draw(ranked: dict[str, list[Standing]], told: Row, file: Path) -> None:
    """Draws a panel a space: each entry's loss relative to MeZO's, task by task and in the mean.

    Args:
        ranked: Space to its entries, in their order.
        told: A run's row, for the heading.
        file: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = max(map(len, ranked.values()))
    figure = Figure(figsize=(12.0, 1.6 + 0.235 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ranked))
    for axes, (space, found) in zip(panels, ranked.items(), strict=True):
        _panel(axes, found)
        weights = "full weights" if space == "full" else "LoRA"
        axes.set_title(weights, fontsize=11)
        axes.set_xlabel("validation loss over MeZO's, same seeds and batches", fontsize=9)
    figure.suptitle(
        f"{told['model']}: loss after {told['budget']:,} forward passes, each method at its best "
        "rate, three seeds. Blue and orange: better and worse than MeZO by more than two standard "
        "errors.\nDot: mean; bar: ± one standard deviation of a run; small marks: tasks (circle "
        "sst2, square squad, triangle copa)",
        fontsize=9.5,
    )
    figure.savefig(file, dpi=110)


def _panel(axes: Any, found: Sequence[Standing]) -> None:
    low, high = WIDEST
    colors = {"better": BETTER, "worse": WORSE, "even": EVEN}
    axes.axvspan(1.0, high * 1.5, color=WORSE, alpha=0.06, linewidth=0)
    axes.axvline(1.0, color="black", linewidth=1.0)
    for place, one in enumerate(found):
        color = "black" if one.name == BASELINE else colors[one.verdict]
        mean = min(max(one.mean, low), high)
        if math.isfinite(one.mean):
            ends = [min(max(one.mean * math.exp(s * one.spread), low), high) for s in (-1, 1)]
            axes.plot(ends, [place, place], color=color, linewidth=2.0, alpha=0.55)
        for task, ratios in one.ratios.items():
            if ratios and one.name != BASELINE:
                each = math.exp(statistics.fmean(map(math.log, ratios)))
                where = min(max(each, low), high)
                axes.plot(where, place, MARKS[task], color=color, markersize=3.4, alpha=0.6)
        axes.plot(mean, place, "o", color=color, markersize=6.5)
        lost = sum(cell.diverged for cell in one.cells.values())
        runs = sum(len(cell.losses) for cell in one.cells.values())
        note = f"{lost}/{runs} diverged" if lost else ""
        if not runs:
            note = "no rate found"
        axes.text(high * 1.03, place, note, fontsize=7, va="center", color=WORSE)
    axes.set_xscale("log")
    axes.set_xlim(low, high * 1.5)
    ticks = [t for t in (0.25, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0) if low <= t <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(found)), [one.name for one in found], fontsize=8)
    for label, one in zip(axes.get_yticklabels(), found, strict=True):
        label.set_color("black" if one.name == BASELINE else colors[one.verdict])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def report(folder: Path, forwards: int) -> None:
    """Prints the tables and draws ``methods.png`` beside the rows, of runs of some length."""
    cells, costs, told = read(folder, forwards)
    ranked = {space: standings(found) for space, found in cells.items() if BASELINE in found}
    print(markdown(ranked, costs))
    draw(ranked, told, folder / "methods.png")
