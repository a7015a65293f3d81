"""What the rows of `real_model.py` say: one table a claim, in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zopeft.report.measures import reaching

Row = dict[str, Any]
BASELINE = "mezo"
CLAIMS = {
    "Is what was learned better than MeZO, and than rows by frequency, which need no learning?": (
        *(BASELINE, "rows", "learned", "learned turns", "learned examples"),
    ),
    "Does it matter what was learned, and where it serves?": (
        *("learned", "scales", "shuffled", "untrained", "random"),
    ),
    "A LoRA whose A begins with learned directions and stays there": (
        *(BASELINE, "mezo B", "mezo start", "learned", "learned start", "shuffled start"),
    ),
    "Four one-sided directions a step, with and without learning": (
        *(BASELINE, "mezo K=4", "learned", "learned K=4"),
    ),
}
OTHERS = "Other settings"
RATES = {"auto": "lr auto", "run": "each at its own best rate"}
HEAD = [
    "task",
    "entry",
    "seeds",
    "loss",
    "metric",
    "calibrated",
    "passes to MeZO's last training loss",
    "to its held-out loss at the end",
    "CPU s",
]
Key = tuple[str, str, int, int]
"""Model, space, forward passes, rows a batch."""


def read(folder: Path) -> list[Row]:
    """Returns all rows, model by model."""
    lines = [path.read_text().splitlines() for path in sorted(folder.glob("*/*.jsonl"))]
    return [json.loads(line) for own in lines for line in own]


def chosen(rows: Iterable[Row], kind: str) -> dict[str, dict[str, dict[int, Row]]]:
    """Returns task to entry to seed to its run, of one kind; of runs at a rate, the best one's.

    A grid that has grown since may have another best, so the last rate that was run counts.
    What another fine-tuner ran does not mix: the last one's runs count.
    """
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row["kind"] == kind:
            own = found.setdefault(row["task"], {}).setdefault(row["entry"], {})
            last = next(iter(own.values()), row)
            if any(last.get(name) != row.get(name) for name in ("lr", "finetuner", "options")):
                own.clear()
            own[row["seed"]] = row
    return found


def line(task: str, name: str, runs: dict[int, Row], base: dict[int, Row]) -> list[str]:
    """Returns an entry's cells."""
    good = [row for row in runs.values() if not row["diverged"]]
    lost = f", {len(runs) - len(good)} diverged" if len(good) < len(runs) else ""
    cells = [task, f"`{name}`", f"{len(runs)}{lost}", _spread(good, "loss")]
    cells += [_spread(good, "metric"), _spread(good, "calibrated")]
    cells.append(_saved(name, reaching(runs, base), len(runs.keys() & base.keys())))
    looked = [seed for seed in runs.keys() & base.keys() if runs[seed].get("looks")]
    cells.append(_saved(name, reaching_held(runs, base), len(looked)))
    return [*cells, f"{statistics.fmean(row['cpu_seconds'] for row in runs.values()):.0f}"]


def reaching_held(runs: dict[int, Row], base: dict[int, Row]) -> list[tuple[float, float]]:
    """Returns, for each seed that comes to MeZO's held-out loss at its end, own and MeZO's passes.

    Unlike the training loss, the held-out one is taken at the weights, not at the probes, whose
    loss is the higher the further they reach, and of the same rows along the run. Between two
    looks the loss is taken to fall evenly. MeZO's count is that of its whole run.
    """
    pairs = []
    for seed in sorted(runs.keys() & base.keys()):
        mine, theirs = runs[seed], base[seed]
        if mine.get("looks") and not mine["diverged"] and not theirs["diverged"]:
            own = crossing(mine, theirs["after"]["held"]["loss"])
            if own is not None:
                pairs.append((own, float(theirs["forwards"])))
    return pairs


def crossing(row: Row, loss: float) -> float | None:
    """Returns the passes after which a run's held-out loss is first at or below `loss`."""
    passes, last = 0.0, row["before"]["held"]["loss"]
    for at, found in [*row["looks"], (row["forwards"], row["after"]["held"]["loss"])]:
        value = math.inf if found is None else found
        if value <= loss:
            if last == math.inf:
                return float(at)
            share = (last - loss) / (last - value) if last > loss else 0.0
            return passes + share * (at - passes)
        passes, last = at, value
    return None


def _saved(name: str, pairs: Sequence[tuple[float, float]], shared: int) -> str:
    """Returns a cell: the median of own passes over MeZO's, and of how many seeds."""
    if name == BASELINE or not shared:
        return ""
    if not pairs:
        return f"none of {shared}"
    ratio = statistics.median(own / theirs for own, theirs in pairs)
    return f"{ratio:.2f} of its own ({len(pairs)} of {shared})"


def _spread(rows: Sequence[Row], name: str) -> str:
    values = [row["after"]["validation"].get(name) for row in rows]
    values = [value for value in values if value is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def table(
    found: dict[str, dict[str, dict[int, Row]]], names: Sequence[str], starts: dict[str, Row]
) -> list[str]:
    """Returns a table of some entries, task by task; nothing where less than two have runs."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for task, entries in found.items():
        own = [name for name in names if name in entries]
        if len(own) < 2:
            continue
        start = starts[task]["validation"]
        told = [f"{start[n]:.3f}" if n in start else "" for n in ("loss", "metric", "calibrated")]
        lines.append("| " + " | ".join([task, "before tuning", "", *told, "", "", ""]) + " |")
        for name in own:
            cells = line(task, name, entries[name], entries.get(BASELINE, {}))
            lines.append("| " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def markdown(rows: Sequence[Row]) -> str:
    """Returns all tables: claim by claim, and for each model, space, budget and kind of rate."""
    keys: dict[Key, list[Row]] = {}
    for row in rows:
        if row["kind"] in RATES:
            key = (row["model"], row["space"], row["budget"], row["batch"])
            keys.setdefault(key, []).append(row)
    starts = {
        (r["model"], r["space"], r["task"], r["batch"]): r for r in rows if r["kind"] == "start"
    }
    known = {name for names in CLAIMS.values() for name in names}
    others = [row["entry"] for row in rows if row["kind"] in RATES and row["entry"] not in known]
    claims = {**CLAIMS, OTHERS: (BASELINE, *dict.fromkeys(others))} if others else CLAIMS
    text: list[str] = []
    for claim, names in claims.items():
        text += [f"## {claim}", ""]
        empty = len(text)
        for (model, space, budget, batch), own in keys.items():
            first = {
                task: one
                for (m, s, task, b), one in starts.items()
                if (m, s, b) == (model, space, batch)
            }
            for kind, rate in RATES.items():
                lines = table(chosen(own, kind), names, first)
                if lines:
                    head = f"**{model}, {space}, {budget} forward passes of {batch} rows, {rate}**"
                    text += [head, "", *lines, ""]
        if len(text) == empty:
            text += ["No two of these entries have runs of one kind.", ""]
    return "\n".join(text)


def report(folder: Path) -> None:
    """Prints the tables."""
    print(markdown(read(folder)))
