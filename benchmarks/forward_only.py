"""What a fine-tuner is worth that was learned from forward passes alone.

Two fine-tuners of a model are learned on the embedded package's cb, wsc and drop: by gradients, and
by forward passes alone. Tasks that neither has seen are then tuned with equal forward passes, full
weights and lr="auto" throughout, by MeZO, by rows by token frequency alone (which needs no
meta-training), with each fine-tuner, and with the second one shuffled over blocks. The report says
which part of the gradient one's gain over MeZO each of them has. Rows that there are already are
not made again, nor
are fine-tuners that are there.

    python benchmarks/forward_only.py STORIES260K-FOLDER --data DATA-FOLDER --keep
    python benchmarks/forward_only.py --report
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from auto import cells, run
from rows import RESULTS, about, keep

from zopeft.jobs.bench.body import Bodies
from zopeft.jobs.bench.contest import _scores
from zopeft.jobs.bench.entry import Entry
from zopeft.models.quiet import quiet
from zopeft.optim.zeroth_order import AUTO_CLIP

LEARNED_ON = ("cb", "wsc", "drop")
GRADIENTS = ("backward", "forward")
MEZO, ROWS, SHUFFLED = "MeZO", "rows by frequency", "forward, shuffled"
ENTRIES = (MEZO, ROWS, *GRADIENTS, SHUFFLED)
TOLD = ("log_gain_over_ones", "kept_of_groups", "groups_measured", "shapes")


def learned(model_folder: str, folder: Path, gradients: str, steps: int, seed: int) -> None:
    """Learns a fine-tuner into a folder, unless it is there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import zopeft
    from zopeft.tasks import load_task
    from zopeft.tasks.places import embedded_source

    if folder.exists():
        return
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    rows = {name: embedded_source(load_task(name), "train").rows[:500] for name in LEARNED_ON}
    begun = time.process_time()
    found = zopeft.meta_train(
        model,
        LEARNED_ON,
        AutoTokenizer.from_pretrained(model_folder),
        rows,
        max_length=96,
        gradients=gradients,
        steps=steps,
        seed=seed,
    )
    found.config.training["cpu_seconds"] = round(time.process_time() - begun, 1)
    found.save_pretrained(folder)


def told(folder: Path) -> dict[str, Any]:
    """Returns what learning a fine-tuner took, and what it found."""
    record = json.loads((folder / "finetuner_config.json").read_text())["training"]
    return {
        "meta_steps": record["steps_made"],
        "meta_forward_passes": record.get("forward_passes"),
        "meta_cpu_seconds": record["cpu_seconds"],
        "learned": {name: record[name] for name in TOLD if name in record},
    }


def entry_of(name: str, folder: str) -> Entry:
    """Returns the entry of a name."""
    options: dict[str, Any] = {"clip": AUTO_CLIP}
    if name == MEZO:
        return Entry(options=options, label=name)
    if name == ROWS:
        return Entry(options={**options, "rows": "frequency"}, label=name)
    control = "shuffled" if name == SHUFFLED else ""
    return Entry("zo_finetuner", folder, control, options, label=name)


def rows_of(args: argparse.Namespace, known: set[str]) -> Iterator[dict[str, Any]]:
    """Yields a row for each seed, task and entry that is not known."""
    args.spaces, args.methods, args.finetuner = ["full"], ["mezo"], None
    for seed, (cell, _) in product(args.seeds, list(cells(args))):
        if cell.model != args.stories:
            continue
        for name in args.entries:
            key = f"{cell.task}|{name}|{args.passes}|{args.steps}|{seed}"
            if key in known:
                continue
            kind = GRADIENTS[1] if name == SHUFFLED else name
            folder = Path(args.folder) / f"{kind}-{args.steps}-{seed}"
            with quiet():
                if kind in GRADIENTS:
                    learned(args.stories, folder, kind, args.steps, seed)
                entry, body = entry_of(name, str(folder)), Bodies().get(cell, seed)
                begun = time.process_time()
                out = run(cell, entry, body, "auto", "auto", seed)
                seconds = round(time.process_time() - begun, 1)
                scores = _scores(cell, body, out, "grid")
            yield {
                "key": key,
                "model": Path(args.stories).name,
                "task": cell.task,
                "entry": name,
                "seed": seed,
                "passes": out.forwards,
                "lr": "auto",
                "lr_last": out.lr,
                "train_loss": None if out.diverged else out.tail,
                "val_loss": scores.get("val_loss"),
                "cpu_seconds": seconds,
                **(told(folder) if kind in GRADIENTS else {}),
            }


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown: means over seeds, parts of the gradient one's gain."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))

    def mean(task: str, entry: str, name: str) -> float:
        own = [r for r in rows if r["task"] == task and r["entry"] == entry]
        found = [math.inf if row[name] is None else row[name] for row in own]
        return sum(found) / len(found) if found else math.nan

    def part(task: str, entry: str) -> str:
        first, best, own = (mean(task, each, "val_loss") for each in (MEZO, "backward", entry))
        return f"{(first - own) / (first - best):.0%}" if first > best else "no gain"

    lines = [
        "| | " + " | ".join(f"{task}, train / validation (part)" for task in tasks) + " |",
        "|---|" + "---|" * len(tasks),
    ]
    for entry in dict.fromkeys(row["entry"] for row in rows):
        words = [
            f"{mean(task, entry, 'train_loss'):.3f} / {mean(task, entry, 'val_loss'):.3f}"
            f" ({part(task, entry)})"
            for task in tasks
        ]
        lines.append(f"| {entry} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", nargs="?", help="folder of stories260K")
    parser.add_argument("--data", help="folder with a folder a task")
    parser.add_argument("--folder", default="runs/forward-only", help="where fine-tuners are kept")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "copa", "squad"])
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--passes", type=int, default=500)
    parser.add_argument("--steps", type=int, default=100, help="meta-steps")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    path = RESULTS / "forward_only.jsonl"
    rows = [json.loads(line) for line in path.open()] if path.exists() else []
    for row in () if args.report else rows_of(args, {row["key"] for row in rows}):
        row.update(about())
        print(json.dumps({key: row[key] for key in list(row)[:11]}), flush=True)
        rows.append(row)
        if args.keep:
            keep("forward_only", [row])
    print(report(rows))


if __name__ == "__main__":
    main()
