"""What the rows of `real_model.py` say: one table a claim, in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zopeft.report.measures import reaching

Row = dict[str, Any]
BASELINE = "mezo"
CLAIMS = {
    "Is what was learned better than MeZO, and than rows by frequency, which need no learning?": (
        *(BASELINE, "rows", "learned"),
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
    "passes to MeZO's last loss",
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
    pairs = reaching(runs, base) if name != BASELINE else []
    shared = len(runs.keys() & base.keys())
    ratios = [own / theirs for own, theirs in pairs]
    if ratios:
        cells.append(f"{statistics.median(ratios):.2f} of its own ({len(ratios)} of {shared})")
    else:
        cells.append("" if name == BASELINE else f"none of {shared}")
    return [*cells, f"{statistics.fmean(row['cpu_seconds'] for row in runs.values()):.0f}"]


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
        lines.append("| " + " | ".join([task, "before tuning", "", *told, "", ""]) + " |")
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
