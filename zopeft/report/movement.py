"""How a fine-tuner's scales move: with the loss, and along a tuning run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zopeft.errors import input_error
from zopeft.staging import staged

if TYPE_CHECKING:
    from zopeft.finetuner import FineTuner, Reading

SHARES = (1.0, 0.5, 0.2)
"""Shares of a run's first loss at which scales are shown."""
MOMENTS = 5
"""Moments of a run at which scales are listed: first to last, evenly."""
_LEGEND = 14


@dataclass(frozen=True)
class Movement:
    """Scales of roles at several moments.

    Attributes:
        roles: The roles.
        moments: Labels of the moments.
        scales: Geometric means over the blocks of a role [roles, moments].
    """

    roles: list[str]
    moments: list[str]
    scales: np.ndarray

    def rows(self) -> list[dict[str, Any]]:
        """One dict a role: ``role`` and ``scales``, a mapping from moment to scale."""
        return [
            {"role": role, "scales": dict(zip(self.moments, row, strict=True))}
            for role, row in zip(self.roles, self.scales.tolist(), strict=True)
        ]


def along_the_loss(finetuner: FineTuner) -> Movement | None:
    """Returns raw scales at `SHARES` of a run's first loss; None where they do not move.

    What else the networks read of a run is taken from the windows that they learned from,
    at that loss; blocks' own values count as average.
    """
    import torch

    from zopeft.finetuner.features import Observed, stack_features

    config = finetuner.config
    if config.output != "bounded":
        return None
    groups = config.groups
    unseen = torch.full((len(groups),), math.nan)
    depth = torch.tensor([math.nan if g.depth is None else g.depth for g in groups])
    columns = []
    for share in SHARES:
        reading = _reading(config.training.get("windows") or [], share)
        seen = Observed(unseen, unseen, torch.zeros(2), torch.ones(len(groups)), depth, reading)
        with torch.no_grad():
            rows = stack_features(config.features, seen, config.inputs)
            columns.append(finetuner.nets(rows, torch.arange(len(groups))).log().numpy())
    labels = [f"loss {share:.0%}" for share in SHARES]
    return _by_role([group.role for group in groups], np.stack(columns, axis=1), labels)


def _reading(windows: Sequence[Mapping[str, Any]], share: float) -> Reading:
    from zopeft.finetuner import Reading

    wanted = math.log(share)
    found = sorted(windows, key=lambda window: float(window["loss_share"]))
    at = [float(window["loss_share"]) for window in found]

    def near(name: str) -> float:
        values = [window.get(name) for window in found]
        if not values or any(value is None for value in values):
            return math.nan
        return float(np.interp(wanted, at, np.asarray(values, dtype=float)))

    return Reading(near("log_loss"), wanted, near("change"), near("bend"))


@dataclass(frozen=True)
class RunScales:
    """The scales that a run has used.

    Attributes:
        roles: The blocks' roles [N].
        steps: Numbers of the steps, from 1.
        logs: Logarithms of the scales [steps, N].
    """

    roles: list[str]
    steps: list[int]
    logs: np.ndarray

    def movement(self) -> Movement:
        """Returns the roles' scales at a few of the steps."""
        places = np.unique(np.linspace(0, len(self.steps) - 1, MOMENTS).round().astype(int))
        labels = [f"step {self.steps[place]}" for place in places]
        return _by_role(self.roles, self.logs[places].T, labels)


def along_a_run(folder: str | Path) -> RunScales:
    """Reads the scales that a tuning run has used from its journal.

    Args:
        folder: The run's folder, or the journal itself.

    Raises:
        InputError: There is no journal, or its steps used no learned scales.
    """
    from zopeft.journal import Journal

    path = Path(folder).expanduser()
    journal = Journal.open(path / "journal.bin" if path.is_dir() else path)
    records = [record for record in journal.records() if record.scales is not None]
    if not records:
        do = "give the folder of a run with a fine-tuner"
        raise input_error("--run", "its steps used no learned scales", str(folder), do)
    scales = np.stack([np.asarray(record.scales, dtype=float) for record in records])
    roles = [_role_of(name) for name, _ in journal.header.blocks]
    logs = np.log(np.maximum(scales, np.finfo(np.float32).tiny))
    return RunScales(roles, [record.step + 1 for record in records], logs)


def _role_of(name: str) -> str:
    """Returns what a block is, from its name alone: the parts that say so.

    ``...layers.3.self_attn.q_proj.lora_A.default.weight`` is ``q_proj lora_A``.
    """
    from torch import nn

    from zopeft.blocks.roles import OTHER, role_of

    parts = name.removesuffix(".weight").split(".")
    for end in range(len(parts), 0, -1):
        role = role_of(".".join(parts[:end]), nn.Module(), "generic")
        if role != OTHER:
            rest = [part for part in parts[end:] if part not in ("default", "bias")]
            return " ".join([role, *rest])
    return OTHER


def _by_role(roles: Sequence[str], logs: np.ndarray, moments: list[str]) -> Movement:
    """Averages logarithms [N, moments] over the blocks of each role."""
    names = list(dict.fromkeys(roles))
    means = [logs[[i for i, role in enumerate(roles) if role == name]].mean(0) for name in names]
    return Movement(names, moments, np.exp(np.stack(means)))


def plot_run(run: RunScales, file: str | Path, title: str) -> Path:
    """Draws a line a role: the geometric mean of its scales over the steps, on a log scale.

    Args:
        run: The scales.
        file: The PNG file.
        title: Stands above.

    Returns:
        The file.

    Raises:
        InputError: The file is not to be a PNG, or its folder does not exist.
    """
    from zopeft.report.heatmap import check_png

    path = check_png(file)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [str(step) for step in run.steps]
    found = _by_role(run.roles, run.logs.T, labels)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(found.roles)))
    for role, row, color in zip(found.roles, found.scales, colors, strict=True):
        axes.plot(run.steps, row, color=color, label=role, linewidth=1.4)
    axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set(xlabel="step", ylabel="scale (1 = as in MeZO)", title=title)
    axes.grid(alpha=0.3)
    size = 8 if len(found.roles) <= _LEGEND else 6
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=size, frameon=False)
    with staged(path) as place:
        figure.savefig(place, dpi=130)
    return path
