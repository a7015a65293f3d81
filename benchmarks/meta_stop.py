"""Whether fewer meta-steps are enough: the rule that stops, beside all 300 of them.

A fine-tuner is learned on the embedded package's cb, wsc and drop, with seeds, by each way: all
steps (`stop` 0), or stopped. What counts is the loss that tuning with it then ends with, on tasks
that it never saw, at lr="auto" and equal passes; and what learning took.

    python benchmarks/meta_stop.py STORIES260K-FOLDER --data DATA-FOLDER --keep
    python benchmarks/meta_stop.py --report
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from auto import cells, run
from rows import RESULTS, about, keep

from zopeft.jobs.bench.body import Bodies
from zopeft.jobs.bench.contest import _scores
from zopeft.jobs.bench.entry import Entry
from zopeft.models.quiet import quiet
from zopeft.optim.zeroth_order import AUTO_CLIP

LEARNED_ON = ("cb", "wsc", "drop")


def learned(folder: str, stop: float, steps: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """Learns a fine-tuner; returns it and what it took."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import zopeft
    from zopeft.tasks import load_task
    from zopeft.tasks.places import embedded_source

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = {name: embedded_source(load_task(name), "train").rows[:500] for name in LEARNED_ON}
    begun = time.process_time()
    found = zopeft.meta_train(
        model,
        LEARNED_ON,
        AutoTokenizer.from_pretrained(folder),
        rows,
        max_length=96,
        stop=stop,
        steps=steps,
        seed=seed,
    )
    record = found.config.training
    return found, {
        "cpu_seconds": round(time.process_time() - begun, 2),
        "meta_steps": record["steps_made"],
        "log_gain": record["log_gain_over_ones"],
    }


def rows_of(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields a row for each way, seed and task."""
    for seed in args.seeds:
        for stop in args.stops:
            with quiet(), tempfile.TemporaryDirectory() as place:
                finetuner, took = learned(args.stories, stop, args.steps, seed)
                finetuner.save_pretrained(place)
                args.finetuner, args.methods = place, ["zo_finetuner"]
                for cell, _ in cells(args):
                    if cell.model != args.stories:
                        continue
                    entry = Entry("zo_finetuner", place, options={"clip": AUTO_CLIP})
                    body = Bodies().get(cell, seed)
                    out = run(cell, entry, body, "auto", "auto", seed)
                    yield {
                        "stop": stop,
                        "most": args.steps,
                        "seed": seed,
                        "task": cell.task,
                        "train_loss": None if out.diverged else out.tail,
                        "val_loss": _scores(cell, body, out, "grid").get("val_loss"),
                        **took,
                    }


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown: means over seeds."""

    def mean(part: list[dict[str, Any]], name: str) -> float:
        found = [math.inf if row[name] is None else row[name] for row in part]
        return sum(found) / len(found)

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    told = " | ".join(f"{task}, train / validation" for task in tasks)
    ways = dict.fromkeys((row["stop"], row["most"]) for row in rows)
    lines = [
        f"| stop | at most | meta-steps | CPU s | log gain | {told} |",
        "|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    for stop, most in ways:
        own = [row for row in rows if (row["stop"], row["most"]) == (stop, most)]
        words = [
            f"{stop:g}",
            f"{most}",
            f"{mean(own, 'meta_steps'):.0f}",
            f"{mean(own, 'cpu_seconds'):.1f}",
        ]
        words.append(f"{mean(own, 'log_gain'):.2f}")
        for task in tasks:
            part = [row for row in own if row["task"] == task]
            words.append(f"{mean(part, 'train_loss'):.3f} / {mean(part, 'val_loss'):.3f}")
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stories", nargs="?", help="folder of stories260K")
    parser.add_argument("--data", help="folder with a folder a task")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "copa", "squad"])
    parser.add_argument("--spaces", nargs="+", default=["full"])
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300, help="meta-steps at most")
    parser.add_argument("--stops", nargs="+", type=float, default=[0.0, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    parser.add_argument("--report", action="store_true", help="only print the table")
    args = parser.parse_args()
    path = RESULTS / "meta_stop.jsonl"
    rows = [json.loads(line) for line in path.open()] if args.report and path.exists() else []
    for row in () if args.report else rows_of(args):
        row.update(about())
        print(json.dumps({key: row[key] for key in list(row)[:8]}), flush=True)
        rows.append(row)
        if args.keep:
            keep("meta_stop", [row])
    print(report(rows))


if __name__ == "__main__":
    main()
