"""Draws the curves that ``tune.py`` wrote: training loss over forward passes.

Run it:  python examples/learned/plot.py curves.json curves.png
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by the colour-blind.
STYLES = {
    "MeZO": ("#000000", "-"),
    "learned": ("#D55E00", "-"),
    "shuffled": ("#0072B2", "--"),
    "untrained": ("#009E73", ":"),
}
PARTS = 20
"""Points of a drawn curve: each the mean of as many steps."""


def smoothed(curve: list[list[float]]) -> tuple[list[float], list[float]]:
    """Returns forward passes and mean losses of up to `PARTS` equal parts of a curve."""
    count = min(PARTS, len(curve))
    cuts = [round(part * len(curve) / count) for part in range(count + 1)]
    parts = [curve[first:last] for first, last in pairwise(cuts)]
    return [part[-1][0] for part in parts], [sum(y for _, y in part) / len(part) for part in parts]


def plot(told: dict[str, Any], file: Path) -> None:
    """Draws a line an entry.

    Args:
        told: What ``tune.py`` wrote.
        file: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, curve in told["curves"].items():
        color, line = STYLES.get(name, (None, "-"))
        axes.plot(*smoothed(curve), line, color=color, label=name, linewidth=1.8)
    axes.set_xlabel("forward passes")
    axes.set_ylabel("training loss")
    axes.set_title(f"{told['model']} on {told['task']}, lr auto, same batches", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
