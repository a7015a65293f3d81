"""Loss curves as PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zopeft.staging import staged


def plot_losses(
    curves: Mapping[str, Sequence[float]], file: Path, title: str, what: str = "loss"
) -> None:
    """Draws one curve a run: every step faint, a running mean on top.

    Args:
        curves: Label to the losses of its steps.
        file: The PNG file.
        title: Stands above the curves.
        what: What the curves are of.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (label, losses) in enumerate(curves.items()):
        color = f"C{index}"
        values = np.asarray(losses, dtype=float)
        axes.plot(np.arange(1, len(values) + 1), values, color=color, alpha=0.25, linewidth=0.8)
        steps, means = running_mean(values)
        axes.plot(steps, means, color=color, label=label)
    axes.set(xlabel="step", ylabel=what, title=title)
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    with staged(file) as place:
        figure.savefig(place, dpi=120)


def running_mean(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns step numbers and the mean over the twentieth of the run that ends there.

    Losses that are not finite are left out of the means.
    """
    finite = np.isfinite(losses)
    values, steps = losses[finite], np.flatnonzero(finite) + 1
    if not len(values):
        return steps, values
    width = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return steps, (sums[ends] - sums[starts]) / (ends - starts)
