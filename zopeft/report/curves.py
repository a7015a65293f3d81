"""A bench's pictures: loss over forward passes, and loss over learning rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zopeft.report.measures import best_of, grid_losses, reported_runs, searched, smoothed
from zopeft.report.rows import Row
from zopeft.report.standings import CellReport
from zopeft.report.tables import short_name
from zopeft.staging import staged

COLUMNS = 4
"""Panels in a row."""
# Okabe and Ito's colours, told apart by the colour-blind; MeZO is black.
PALETTE = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6F00")
CONTROL_LINES: dict[str, Any] = {
    "shuffled": "--",
    "untrained": ":",
    "random": "-.",
    "scales": (0, (5, 1)),
}

Panel = Callable[[Any, "Lines"], None]
Lines = Sequence[tuple[dict[str, Any], list[Row]]]
"""Each entry's style and rows."""


def draw_curves(cells: Sequence[CellReport], rows: Sequence[Row], file: Path) -> None:
    """Draws a panel a cell: each entry's smoothed training loss at its best learning rate.

    Where no rates were tried it is that at lr=auto. The line is the mean over the reported seeds,
    the band reaches from the lowest to the highest of them.

    Args:
        cells: What the rows say.
        rows: The rows.
        file: The PNG file.
    """
    _draw(cells, rows, file, _curves, "forward passes", "training loss")


def draw_rates(cells: Sequence[CellReport], rows: Sequence[Row], file: Path) -> None:
    """Draws a panel a cell: the final training loss over the learning rates of the grid.

    A ring marks the best rate, a triangle on the axis the rates that lr=auto chose.
    """
    _draw(cells, rows, file, _rates, "learning rate", "training loss, last tenth")


def _draw(
    cells: Sequence[CellReport],
    rows: Sequence[Row],
    file: Path,
    panel: Panel,
    xlabel: str,
    ylabel: str,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(COLUMNS, len(cells))
    down = math.ceil(len(cells) / across)
    names = {one.entry: one.name for cell in cells for one in cell.standings}
    styles = _styles(list(names))
    legend = 0.25 * math.ceil(len(names) / across) + 0.2
    figure = Figure(figsize=(3.6 * across + 0.4, 2.9 * down + legend), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False)
    for index, cell in enumerate(cells):
        axes = grid[index // across][index % across]
        place = (cell.model, cell.task, cell.space)
        own = [r for r in rows if (r["model"], r["task"], r["space"]) == place]
        entries = [one.entry for one in cell.standings]
        panel(axes, [(styles[one], [r for r in own if r["entry"] == one]) for one in entries])
        axes.set_title(f"{Path(cell.model).name}, {cell.task}, {cell.space}", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if index % across == 0:
            axes.set_ylabel(ylabel, fontsize=9)
        if index + across >= len(cells):
            axes.set_xlabel(xlabel, fontsize=9)
    for index in range(len(cells), across * down):
        grid[index // across][index % across].set_visible(False)
    lines = [Line2D([], [], **styles[one], label=short_name(names[one], 44)) for one in names]
    below: dict[str, Any] = {"loc": "outside lower center", "ncols": across, "frameon": False}
    figure.legend(handles=lines, fontsize=8, **below)
    with staged(file) as picture:
        figure.savefig(picture, dpi=130)


def _styles(entries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns each entry's line: a control has its fine-tuner's colour, broken and beneath it."""
    plain = list(dict.fromkeys(_without_control(entry) for entry in entries))
    return {entry: _style(entry, plain.index(_without_control(entry))) for entry in entries}


def _without_control(entry: str) -> str:
    return " ".join(word for word in entry.split() if word not in CONTROL_LINES)


def _style(entry: str, index: int) -> dict[str, Any]:
    broken = [CONTROL_LINES[word] for word in entry.split() if word in CONTROL_LINES]
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": broken[0] if broken else "-",
        "linewidth": 1.2 if broken else 1.7,
        "zorder": 2.2 if broken else 2.5,
    }


def _curves(axes: Any, entries: Lines) -> None:
    bottoms, tops = [], []
    tried = any(searched(mine) for _, mine in entries)
    for style, mine in entries:
        fresh, _ = reported_runs(mine, tried)
        lines = [smoothed(row["curve"]) for row in fresh.values() if not row["diverged"]]
        lines = [line for line in lines if line]
        if not lines:
            continue
        length = min(map(len, lines))
        at = [statistics.fmean(line[k][0] for line in lines) for k in range(length)]
        values = [[line[k][1] for line in lines] for k in range(length)]
        means = [statistics.fmean(group) for group in values]
        low, high = [min(group) for group in values], [max(group) for group in values]
        if len(lines) > 1:
            axes.fill_between(at, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(at, means, **style)
        finite = sorted(value for value in means if math.isfinite(value))
        bottoms += finite[:1]
        tops += finite[-1 - len(finite) // 20 :][:1]
    axes.set_xlim(left=0)
    _limits(axes, bottoms, tops)


def _rates(axes: Any, entries: Lines) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    grids = [grid_losses(mine) for _, mine in entries]
    finite = [[loss for loss in tried.values() if math.isfinite(loss)] for tried in grids]
    finite = [losses for losses in finite if losses]
    _limits(axes, [min(losses) for losses in finite], list(map(statistics.median, finite)))
    ceiling = axes.get_ylim()[1]
    for tried, (style, mine) in zip(grids, entries, strict=True):
        if not tried:
            continue
        # What blew up is drawn at the upper edge.
        shown = {lr: min(loss, ceiling) for lr, loss in tried.items()}
        axes.plot(list(shown), list(shown.values()), marker=".", markersize=5, **style)
        best, _ = best_of(tried)
        axes.plot([best], [shown[best]], "o", color=style["color"], fillstyle="none", markersize=9)
        chosen = [row["lr"] for row in mine if row["role"] == "auto" and row["lr"]]
        if chosen:
            # Without any there is nothing to draw, but something at 0 for the layout.
            floor = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            triangle = {"color": style["color"], "markersize": 5, **floor}
            axes.plot(chosen, [0.02] * len(chosen), "^", **triangle)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:.0e}".replace("e-0", "e-")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _limits(axes: Any, bottoms: Sequence[float], tops: Sequence[float]) -> None:
    """Keeps a run that blew up from squeezing all others."""
    if not bottoms or not tops:
        return
    low, high = min(bottoms), max(tops)
    room = max(high - low, 1e-3 * max(1.0, abs(high)))
    axes.set_ylim(low - 0.08 * room, high + 0.12 * room)
