"""What the rows of `real_model.py` say: one table a claim, in Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.errors import input_error

Row = dict[str, Any]
BASELINE = "mezo"


@dataclass(frozen=True)
class Claim:
    """A question, and the runs that answer it.

    Args:
        asks: What the table is to tell.
        beside: Who stands beside those that are asked of.
        of: Who is asked of; a task where none of them has runs is not shown.
        grounds: Model, space and forward passes of the runs.
    """

    asks: str
    beside: tuple[str, ...]
    of: tuple[str, ...]
    grounds: tuple[tuple[str, str, int], ...]


BOTH = (BASELINE, "learned")
IN_FULL = (("smollm2", "full", 600),)
STARTS = ("mezo B", "mezo start", "learned", "learned start", "shuffled start")
OPTIONS = ("learned turns", "learned examples", "mezo examples", "rows examples")
CLAIMS = {
    "learned": Claim(
        "Is what was learned better than MeZO, and than rows by frequency, which need no learning?",
        *((BASELINE,), ("rows", "learned"), IN_FULL),
    ),
    "controls": Claim(
        "Does it matter what was learned, and where it serves?",
        *(BOTH, ("scales", "shuffled", "untrained", "random"), IN_FULL),
    ),
    "directions": Claim(
        "Are four one-sided directions a step better than one on both sides?",
        *(BOTH, ("mezo K=4", "learned K=4"), IN_FULL),
    ),
    "options": Claim(
        "What do options that share out the budget, or set the rate, otherwise come to?",
        *((*BOTH, "rows"), OPTIONS, IN_FULL),
    ),
    "lora": Claim(
        "Does a LoRA gain whose A begins with learned directions and stays there?",
        *((BASELINE,), STARTS, (("smollm2", "lora", 600),)),
    ),
    "transfer": Claim(
        "Does it serve a derivative and quantised copies of the model that it was learned on?",
        *((BASELINE,), ("learned", "learned start", "shuffled", "shuffled start")),
        (
            ("smollm2-derived", "full", 600),
            ("smollm2-8bit", "lora", 600),
            ("smollm2-4bit", "lora", 600),
        ),
    ),
    "gemma": Claim(
        "Does a model of another family gain by a fine-tuner of its own?",
        *((BASELINE,), ("rows", "learned", "learned, eps 1e-3", "shuffled")),
        (("gemma3-270m", "full", 600),),
    ),
    "short": Claim(
        "What do two hundred passes come to?",
        *((BASELINE,), ("rows",), (("smollm2", "full", 200),)),
    ),
    "small": Claim(
        "Does a LoRA of a small model gain by that start?",
        *((BASELINE,), STARTS),
        (("stories260K", "lora", 2000), ("embedded", "lora", 600)),
    ),
}
RATES = {"auto": "", "run": ", best rate"}
"""Kind of run to what its entry's name has added."""
HEAD = [
    "task",
    "entry",
    "seeds",
    "loss",
    "accuracy, F1",
    "calibrated",
    "below MeZO's loss",
    "at MeZO's held-out end after",
]
Ground = tuple[str, str, int]
"""Model, space and forward passes."""
Runs = dict[int, Row]
"""Seed to its run."""


def read(folder: Path) -> list[Row]:
    """Returns all rows, model by model."""
    lines = [path.read_text().splitlines() for path in sorted(folder.glob("*/*.jsonl"))]
    return [json.loads(line) for own in lines for line in own]


def chosen(rows: Iterable[Row], kind: str) -> dict[str, dict[str, Runs]]:
    """Returns task to entry to seed to its run, of one kind; of runs at a rate, the best one's.

    A grid that has grown since may have another best, so the last rate that was run counts.
    What another fine-tuner ran does not mix: the last one's runs count.
    """
    found: dict[str, dict[str, Runs]] = {}
    for row in rows:
        if row["kind"] == kind:
            own = found.setdefault(row["task"], {}).setdefault(row["entry"], {})
            last = next(iter(own.values()), row)
            if any(last.get(name) != row.get(name) for name in ("lr", "finetuner", "options")):
                own.clear()
            own[row["seed"]] = row
    return found


def line(task: str, name: str, runs: Runs, base: Runs, best: Runs) -> list[str]:
    """Returns an entry's cells.

    Args:
        task: The task.
        name: The entry, with its kind of rate.
        runs: Its runs.
        base: MeZO's at lr auto.
        best: MeZO's at its best rate; empty where it has none.
    """
    good = [row for row in runs.values() if not row["diverged"]]
    lost = f", {len(runs) - len(good)} diverged" if len(good) < len(runs) else ""
    cells = [task, name, f"{len(runs)}{lost}", _spread(good, "loss")]
    cells += [_spread(good, "metric"), _spread(good, "calibrated")]
    if runs is base:
        return [*cells, "", ""]
    own, shared = below(runs, base)
    cells.append(f"{own} of {shared}" if shared else "")
    own, shared = below(runs, best)
    if shared and runs is not best:
        cells[-1] += f" (best rate: {own} of {shared})"
    looked = [seed for seed in runs.keys() & base.keys() if runs[seed].get("looks")]
    return [*cells, _saved(reaching_held(runs, base), len(looked))]


def below(runs: Runs, base: Runs) -> tuple[int, int]:
    """Returns on how many seeds a run's validation loss is below MeZO's, and of how many.

    What has diverged is not below, and anything is below it.
    """
    shared = sorted(runs.keys() & base.keys())
    return sum(_end(runs[seed]) < _end(base[seed]) for seed in shared), len(shared)


def _end(row: Row) -> float:
    return math.inf if row["diverged"] else float(row["loss_after"])


def reaching_held(runs: Runs, base: Runs) -> list[tuple[float, float]]:
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


def _saved(pairs: Sequence[tuple[float, float]], shared: int) -> str:
    """Returns a cell: the median of own passes over MeZO's, and of how many seeds."""
    if not shared:
        return ""
    if not pairs:
        return f"none of {shared}"
    ratio = statistics.median(own / theirs for own, theirs in pairs)
    return f"{ratio:.2f} of its passes ({len(pairs)} of {shared})"


def _spread(rows: Sequence[Row], name: str) -> str:
    values = [row["after"]["validation"].get(name) for row in rows]
    values = [value for value in values if value is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def table(rows: Sequence[Row], claim: Claim) -> list[str]:
    """Returns a claim's table, task by task; nothing where no task has runs of those it asks of.

    Args:
        rows: Those of one model, space, budget and batch.
        claim: Whose runs.
    """
    names = (*claim.beside, *claim.of)
    starts = {row["task"]: row["validation"] for row in rows if row["kind"] == "start"}
    kinds = {kind: chosen(rows, kind) for kind in RATES}
    ran = [row for row in rows if row["kind"] in RATES and row["entry"] in names]
    tasks = {row["task"] for row in ran if row["entry"] in claim.of}
    several = len({_artifact(row) for row in ran if row["task"] in tasks} - {""}) > 1
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for task, start in starts.items():
        if task not in tasks:
            continue
        own = {kind: kinds[kind].get(task, {}) for kind in RATES}
        found = {
            f"`{name}`{rate}": own[kind][name]
            for name in names
            for kind, rate in RATES.items()
            if name in own[kind]
        }
        told = [f"{start[n]:.3f}" if n in start else "" for n in ("loss", "metric", "calibrated")]
        lines.append("| " + " | ".join([task, "before tuning", "", *told, "", ""]) + " |")
        base, best = (own[kind].get(BASELINE, {}) for kind in RATES)
        for name, runs in found.items():
            artifact = _artifact(next(iter(runs.values())))
            name += f" ({artifact})" if several and artifact else ""
            lines.append("| " + " | ".join(line(task, name, runs, base, best)) + " |")
    return lines if len(lines) > 2 else []


def _artifact(row: Row) -> str:
    """Returns the first digits of the digest of the fine-tuner that a run was made with."""
    return str(row.get("finetuner") or "")[:7]


def markdown(rows: Sequence[Row], names: Sequence[str] = ()) -> str:
    """Returns some claims' tables; of no names all, and what no claim shows.

    Raises:
        InputError: There is no such claim.
    """
    for name in names:
        if name not in CLAIMS:
            raise input_error("--report", "no such claim", name, f"take {', '.join(CLAIMS)}")
    told = names or [*CLAIMS]
    parts = [_section(rows, CLAIMS[name]) for name in told]
    if not names:
        parts += [_section(rows, claim) for claim in _others(rows)]
    return "\n".join(parts)


def _section(rows: Sequence[Row], claim: Claim) -> str:
    text = [f"### {claim.asks}", ""]
    for ground in claim.grounds:
        own = [row for row in rows if _ground(row) in (ground, (*ground[:2], None))]
        batches = dict.fromkeys(row["batch"] for row in own if row["kind"] in RATES)
        for batch in batches:
            lines = table([row for row in own if row["batch"] == batch], claim)
            if lines:
                model, space, budget = ground
                head = f"**{model}, {space}, {budget} forward passes of {batch} rows**"
                text += [head, "", *lines, ""]
    if len(text) == 2:
        text += ["None of these entries has runs.", ""]
    return "\n".join(text)


def _ground(row: Row) -> tuple[str, str, int | None]:
    """Returns a row's model, space and budget; those of a start serve all budgets."""
    return row["model"], row["space"], row.get("budget")


def _others(rows: Sequence[Row]) -> list[Claim]:
    """Returns the runs that no claim shows, a claim for each model, space and budget."""
    shown = {
        (*ground, name)
        for claim in CLAIMS.values()
        for ground in claim.grounds
        for name in (*claim.beside, *claim.of)
    }
    left: dict[Ground, dict[str, None]] = {}
    for row in rows:
        ground = _ground(row)
        if row["kind"] in RATES and (*ground, row["entry"]) not in shown:
            left.setdefault(ground, {})[row["entry"]] = None
    return [
        Claim(f"Others: {', '.join(map(str, ground))}", (BASELINE,), tuple(names), (ground,))
        for ground, names in left.items()
    ]


MARK, END = "<!-- claim ", "<!-- end -->"


def write_into(page: Path, rows: Sequence[Row]) -> None:
    """Puts the claims' tables between a page's marks, ``<!-- claim NAME -->`` and ``<!-- end -->``.

    Raises:
        InputError: There is no such page, or a mark names no claim or has no end.
    """
    if not page.is_file():
        raise input_error("--into", "no such page", str(page))
    page.write_text(filled(page.read_text(), rows))


def filled(text: str, rows: Sequence[Row]) -> str:
    """Returns a page with its tables.

    Raises:
        InputError: A mark names no claim, or another one comes before its end.
    """
    first, *parts = text.split(MARK)
    made = [first]
    for part in parts:
        name, opened, rest = part.partition(" -->\n")
        _, closed, after = rest.partition(END)
        if not opened or not closed:
            raise input_error("--into", f"no line {END} after the mark", name.split("\n")[0])
        made.append(f"{name} -->\n\n{markdown(rows, [name])}\n{END}{after}")
    return MARK.join(made)
