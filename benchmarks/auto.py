"""lr="auto" beside the best rate of a grid, and beside the auto of before, at equal passes.

A cell is a model, a task, a space and a method. In each, runs of the same forward passes are
made with a grid of rates around what a first look of 17 passes proposes (`grid`), with such a
look and the looks that once followed it (`before`), and with lr="auto" of this build, whose share
of signal begins with a fixed number (`auto`) or with what the first batches' examples tell
(`examples`).
All of them clip alike. Rows are kept; those that there are already are not made again.

    python benchmarks/auto.py --stories MODEL-FOLDER --data DATA-FOLDER --finetuner FOLDER --keep
    python benchmarks/auto.py --report
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from rows import RESULTS, about, keep

from zopeft.jobs.bench.body import Bodies, batches
from zopeft.jobs.bench.cells import EMBEDDED, Cell, Request, cells_of
from zopeft.jobs.bench.contest import _scores
from zopeft.jobs.bench.entry import Entry
from zopeft.jobs.bench.grid import search
from zopeft.jobs.bench.making import make_method
from zopeft.jobs.bench.run import Counted, Outcome, _steps
from zopeft.models.quiet import quiet
from zopeft.optim.defaults import default_reach, fallback_lr
from zopeft.optim.learning_rate import first_look
from zopeft.optim.zeroth_order import AUTO_CLIP

RATIO, GRID, EXTENSIONS = 2.0, 3, 3
TASKS, SPACES, METHODS = ("sst2", "copa", "squad"), ("full", "lora"), ("mezo", "zo_finetuner")
WAYS = ("grid", "before", "auto", "examples")
SHOWN = ("before", "auto", "examples")
"""Ways whose losses are shown over the best rate's."""
NEAR = 1.1
"""How far above the best rate's loss an auto may end."""


def cells(args: argparse.Namespace) -> Iterator[tuple[Cell, Entry]]:
    """Yields the cells and who runs in them."""
    models = [EMBEDDED, *([args.stories] if args.stories else [])]
    for model in models:
        words = [f"bench.forwards={args.passes}", "training.batch_size=8"]
        words += ["task.train_examples=1000", "task.eval_examples=144", "task.max_length=96"]
        flags: dict[str, Any] = {
            "bench.models": ("MODEL", (model,)),
            "bench.tasks": ("--task", tuple(args.tasks)),
            "bench.spaces": ("--space", tuple(args.spaces)),
        }
        if model != EMBEDDED:
            flags["task.data"] = ("--data", args.data)
        _, found = cells_of(Request(None, words, flags))
        for cell, method in product(found, args.methods):
            learned = method != "mezo"
            if not learned:
                yield cell, Entry(options={"clip": AUTO_CLIP})
            elif model != EMBEDDED and args.finetuner:
                yield cell, Entry(method, args.finetuner, options={"clip": AUTO_CLIP})


def before(method: Any, closure: Any) -> float:
    """Has a method begin as lr="auto" once did: a look along eight directions, 17 passes."""
    method.engine.adopt()
    scales = method._scales()
    method._select(closure)
    first = method.selection.at(method.steps)
    look = first_look(
        method.engine, closure, scales, method.eps, method.seed, first, method.along, 8, 4, 3.0
    )
    start = {
        "curvature": look.curvature,
        "energy": look.energy,
        "reach": method.eps * default_reach(method.blocks),
        "share": method._share(scales),
        "fallback": fallback_lr(method.blocks),
        "eps": method.eps,
    }
    method.begin_rate(start, 0.0)
    rate = float(method.rate.first)
    method.begin_rate(start, rate)
    return rate


def run(cell: Cell, entry: Entry, body: Any, way: str, lr: Any, seed: int) -> Outcome:
    """Makes one run until its passes are spent, those of measuring included."""
    recipe = cell.recipe
    body.blocks.model.eval()
    method = make_method(entry, body, lr, recipe, seed)
    method.probing.steps_planned = recipe.bench.forwards // method.estimator.forwards
    loss = Counted(body, False)
    feed = batches(body, recipe.training.batch_size, seed)
    out = Outcome(0.0, way)
    if way == "before":
        loss.batch = next(batches(body, recipe.training.batch_size, seed))
        before(method, loss)
        out.calibration = loss.forwards
    out.diverged = not _steps(method, loss, feed, recipe.bench.forwards, out)
    out.diverged = out.diverged or out.risen
    out.steps, out.forwards = len(out.losses), loss.forwards
    out.lr = float(method.last_record.lr[0])
    return out


def rows_of(
    cell: Cell, entry: Entry, seeds: list[int], known: dict[str, Any], ways: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a cell that are not known."""
    bodies = Bodies()

    def made(way: str, lr: Any, seed: int) -> dict[str, Any]:
        rate = lr if isinstance(lr, str) else f"{lr:.6g}"
        name = "embedded" if cell.model == EMBEDDED else cell.model.rstrip("/").split("/")[-1]
        own = [name, cell.task, cell.space, entry.method, way, rate, str(seed)]
        key = "|".join([*own, str(cell.recipe.bench.forwards)])
        if key not in known:
            with quiet():
                body = bodies.get(cell, seed)
                given = "auto" if way != "grid" else lr
                told = {"share": "examples"} if way == "examples" else {}
                whole = replace(entry, options={**entry.options, **told})
                out = run(cell, whole, body, way, given, seed)
                scores = _scores(cell, body, out, "grid")
            known[key] = {
                "key": key,
                "model": name,
                "task": cell.task,
                "space": cell.space,
                "method": entry.method,
                "way": way,
                "lr": lr,
                "lr_last": out.lr,
                "seed": seed,
                "budget": cell.recipe.bench.forwards,
                "steps": out.steps,
                "forward_passes": out.forwards,
                "measuring": out.forwards - 2 * out.steps,
                "before_step_1": out.spent[0] - 2 if out.spent else None,
                "train_loss": None if out.diverged else out.tail,
                "val_loss": scores.get("val_loss"),
            }
            fresh.append(known[key])
        return known[key]

    fresh: list[dict[str, Any]] = []
    if "grid" in ways:
        with quiet():
            body = bodies.get(cell, seeds[0])
            method = make_method(entry, body, "auto", cell.recipe, seeds[0])
            loss = Counted(body, False)
            loss.batch = next(batches(body, 8, seeds[0]))
            centre = before(method, loss)

        def score(lr: float) -> float:
            found = [made("grid", lr, seed)["train_loss"] for seed in seeds]
            return sum(math.inf if one is None else one for one in found) / len(found)

        search(float(f"{centre:.3g}"), RATIO, GRID, EXTENSIONS, score)
    for way in ways:
        if way != "grid":
            for seed in seeds:
                made(way, "auto", seed)
    yield from fresh


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown: losses over the best grid rate's, means over seeds."""
    lines = [
        "| model, space, method, task (passes) | best rate | train, validation loss"
        " | before | auto | auto by examples | measuring passes before -> auto |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys(
        (r["model"], r["space"], r["method"], r["task"], r["budget"]) for r in rows
    )
    near: dict[str, list[bool]] = {way: [] for way in SHOWN}
    ratios: dict[str, list[float]] = {way: [] for way in SHOWN}
    for kind in kinds:
        own = [
            r for r in rows if (r["model"], r["space"], r["method"], r["task"], r["budget"]) == kind
        ]

        def mean(part: list[dict[str, Any]], name: str) -> float:
            found = [math.inf if r[name] is None else r[name] for r in part]
            return sum(found) / len(found) if found else math.nan

        rates = dict.fromkeys(r["lr"] for r in own if r["way"] == "grid")
        if not rates:
            continue
        best = min(rates, key=lambda lr: mean([r for r in own if r["lr"] == lr], "train_loss"))
        at = [r for r in own if r["lr"] == best]
        told = [f"{', '.join(map(str, kind[:4]))} ({kind[4]})", f"{best:.2g}"]
        told.append(f"{mean(at, 'train_loss'):.3f}, {mean(at, 'val_loss'):.3f}")
        for way in SHOWN:
            mine = [r for r in own if r["way"] == way]
            both = [mean(mine, name) / mean(at, name) for name in ("train_loss", "val_loss")]
            told.append(", ".join(f"{one:.3f}" for one in both))
            if mine:
                near[way].append(both[0] <= NEAR)
                ratios[way].append(both[0])
        counted = [[r for r in own if r["way"] == way] for way in ("before", "auto")]
        costs = [mean(part, "measuring") for part in counted]
        told.append(" -> ".join(f"{cost:.0f}" for cost in costs))
        lines.append("| " + " | ".join(told) + " |")
    for way, found in near.items():
        if found:
            middle = math.exp(sum(map(math.log, ratios[way])) / len(found))
            lines.append(
                f"\n{way}: within {NEAR:g} of the best rate's training loss in {sum(found)} of"
                f" {len(found)} cells; geometric mean {middle:.3f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", help="folder of stories260K")
    parser.add_argument("--data", help="folder with a folder a task")
    parser.add_argument("--finetuner", help="folder of a fine-tuner of that model")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    path = RESULTS / "auto.jsonl"
    kept = [json.loads(line) for line in path.open()] if path.exists() else []
    known = {row["key"]: row for row in kept}
    for cell, entry in () if args.report else cells(args):
        for row in rows_of(cell, entry, args.seeds, known, args.ways):
            row.update(about())
            print(json.dumps({k: row[k] for k in ("key", "train_loss", "val_loss", "measuring")}))
            sys.stdout.flush()
            if args.keep:
                keep("auto", [row])
    print(report(list(known.values())))


if __name__ == "__main__":
    main()
