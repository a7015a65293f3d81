"""Heatmaps: scales over layers and roles, as a grid of numbers and as a PNG file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zopeft.errors import input_error
from zopeft.staging import staged

_WIDEST = 4.0
"""Doublings from 1 that the colours reach; beyond them the end colour stays."""
_NUMBERED = 24
"""Columns up to which every cell carries its number."""


@dataclass(frozen=True)
class Cell:
    """One block of a heatmap.

    Attributes:
        layer: Its layer, None outside the layers.
        column: Its role.
        scale: Its scale, at least 0.
        served: Whether a group serves it; others stand at the neutral scale.
    """

    layer: int | None
    column: str
    scale: float
    served: bool = True


@dataclass(frozen=True)
class Grid:
    """Scales in rows and columns; where several blocks share a cell, their geometric mean.

    Attributes:
        rows: Labels of the rows: layers, or one empty label for what stands outside them.
        columns: Labels of the columns: roles, in order of appearance.
        scales: The scales [rows, columns], NaN where there is no block.
        served: Whether a group serves any block of the cell [rows, columns].
        steps: Doublings from 1 to each scale [rows, columns].
    """

    rows: list[str]
    columns: list[str]
    scales: np.ndarray
    served: np.ndarray
    steps: np.ndarray


def grids(cells: Sequence[Cell]) -> list[Grid]:
    """Returns a grid of the layers and one of what stands outside them, where there are any."""
    inside = [cell for cell in cells if cell.layer is not None]
    outside = [cell for cell in cells if cell.layer is None]
    return [_grid(part) for part in (inside, outside) if part]


def _grid(cells: Sequence[Cell]) -> Grid:
    layers = sorted({-1 if cell.layer is None else cell.layer for cell in cells})
    columns = list(dict.fromkeys(cell.column for cell in cells))
    places: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        row = layers.index(-1 if cell.layer is None else cell.layer)
        places.setdefault((row, columns.index(cell.column)), []).append(cell)
    scales = np.full((len(layers), len(columns)), np.nan)
    served = np.zeros(scales.shape, dtype=bool)
    for place, found in places.items():
        values = [cell.scale for cell in found]
        low = min(values)
        scales[place] = low if low <= 0 else math.exp(sum(map(math.log, values)) / len(values))
        served[place] = any(cell.served for cell in found)
    rows = [str(layer) if layer >= 0 else "" for layer in layers]
    return Grid(rows, columns, scales, served, _steps(scales, 1.0))


def plot_scales(
    cells: Sequence[Cell], file: str | Path, title: str, note: str = "", raw: bool = False
) -> Path:
    """Draws scales over layers and roles: red above 1, blue below, hatched where none serves.

    Args:
        cells: The blocks.
        file: The PNG file.
        title: Stands above.
        note: A smaller line below the title.
        raw: Whether they are raw scales, whose size says nothing: the colours then turn at
            their geometric mean.

    Returns:
        The file.

    Raises:
        InputError: The file is not to be a PNG, or its folder does not exist.
    """
    path = check_png(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = grids(cells)
    columns = max(len(grid.columns) for grid in parts)
    heights = [0.34 * len(grid.rows) + 0.2 for grid in parts]
    width = max(6.5, 0.72 * columns + 1.9)
    figure = Figure(figsize=(width, sum(heights) + 2.1 + 0.5 * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    # All panels have cells of one width, so that a short one does not stretch.
    layout: Any = [[str(index)] for index in range(len(parts))]
    panels = figure.subplot_mosaic(layout, gridspec_kw={"height_ratios": heights})
    center = _center(parts) if raw else 1.0
    parts = [replace(grid, steps=_steps(grid.scales, center)) for grid in parts]
    reach = _reach(parts)
    image: Any = None
    for index, grid in enumerate(parts):
        axes = panels[str(index)]
        image = _panel(axes, grid, columns, reach)
        axes.set_ylabel("layer" if grid.rows != [""] else "outside\nlayers", fontsize=9)
    if note:
        lines = textwrap.fill(note, int(15 * width))
        panels["0"].set_title(lines, fontsize=8, color="0.35")
    bar = figure.colorbar(image, ax=list(panels.values()), extend=_extend(parts, reach), pad=0.02)
    ticks = np.arange(-math.floor(reach), math.floor(reach) + 1)
    bar.set_ticks(list(ticks), labels=[f"{center * 2.0**t:.3g}" for t in ticks])
    bar.ax.tick_params(labelsize=8)
    bar.set_label("raw scale" if raw else "scale (1 = as in MeZO)", fontsize=9)
    with staged(path) as place:
        figure.savefig(place, dpi=130)
    return path


def check_png(file: str | Path) -> Path:
    """Returns the path of a PNG file that can be written.

    Raises:
        InputError: It is not to be a PNG, or its folder does not exist.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() != ".png" or path.is_dir():
        raise input_error("--png", "must be the name of a .png file", str(file))
    if not path.parent.is_dir():
        raise input_error("--png", "no such folder", str(path.parent), "make it first")
    return path


def _center(parts: Sequence[Grid]) -> float:
    """Returns the geometric mean of all scales above 0; 1 where there is none."""
    scales = np.concatenate([grid.scales[grid.scales > 0] for grid in parts])
    return float(np.exp(np.log(scales).mean())) if len(scales) else 1.0


def _steps(scales: np.ndarray, center: float) -> np.ndarray:
    """Returns the doublings from `center` to each scale: NaN where there is none."""
    with np.errstate(divide="ignore"):
        return np.log2(scales / center)


def _reach(parts: Sequence[Grid]) -> float:
    """Returns the doublings from the middle that the colours are to reach."""
    steps = np.abs(np.concatenate([grid.steps.ravel() for grid in parts]))
    steps = steps[np.isfinite(steps)]
    return float(np.clip(np.ceil(steps.max(initial=0.0)), 1.0, _WIDEST))


def _extend(parts: Sequence[Grid], reach: float) -> str:
    """Returns at which ends of the colour bar there are scales beyond it."""
    steps = np.concatenate([grid.steps.ravel() for grid in parts])
    low, high = bool(np.nanmin(steps) < -reach), bool(np.nanmax(steps) > reach)
    return {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[low, high]


def _panel(axes: Any, grid: Grid, columns: int, reach: float) -> Any:
    """Draws one grid, and returns what the colour bar is made of."""
    import matplotlib
    from matplotlib.patches import Rectangle

    steps = np.clip(grid.steps, -reach - 1, reach + 1)
    colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.93")
    image = axes.imshow(steps, cmap=colors, vmin=-reach, vmax=reach, aspect="auto")
    axes.set_xlim(-0.5, columns - 0.5)
    labels = [column.replace(" ", "\n") for column in grid.columns]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    if columns > 4:
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8)
    axes.tick_params(length=0)
    # White lines between the cells.
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(grid.rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for (row, column), scale in np.ndenumerate(grid.scales):
        if np.isnan(scale):
            continue
        if not grid.served[row, column]:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="0.75", linewidth=0)
            )
        if columns <= _NUMBERED:
            dark = abs(steps[row, column]) > 0.62 * reach
            color = "white" if dark else "0.15"
            text = "1" if not grid.served[row, column] else f"{scale:.2g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    return image
