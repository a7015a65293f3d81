"""Whether zeroth-order tuning learns each task of the embedded model.

Runs ``zopeft tune`` with its defaults (MeZO, ``--lr auto``) for every task, in LoRA and in
full, and prints one JSON row a run and the README's table in Markdown.

    python benchmarks/learning.py --keep
    python benchmarks/learning.py --spaces full --tasks wsc --steps 1000 method.lr=6e-4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

from rows import about, keep

from zopeft.embedded import TASKS


def run(task: str, space: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Tunes once by the command line and returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "zopeft.cli.main", "tune", f"--{space}", "--task", task]
        command += ["--steps", str(args.steps), "--batch-size", str(args.batch)]
        command += ["--seed", str(seed), "--out", f"{folder}/out", "--json", *args.overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr.strip().splitlines()[-1])
        summary = json.loads(done.stdout)
    before, after = summary["metrics"]["before"], summary["metrics"]["after"]
    metric = next(name for name in ("accuracy", "f1") if name in after)
    return {
        "task": task,
        "space": space,
        "seed": seed,
        "metric": metric,
        "unit": "share of 200 validation rows",
        "before": before[metric],
        "after": after[metric],
        "loss_before": before["loss"],
        "loss_after": after["loss"],
        "lr": summary["lr"],
        "steps": summary["steps"],
        "batch": args.batch,
        "overrides": args.overrides,
        "forward_passes": summary["forward_passes"],
        "seconds": summary["seconds"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Returns the README's table: means over seeds."""
    lines = ["| task | metric | untuned | LoRA | full |", "|---|---|---|---|---|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        cells = [task, mine[0]["metric"], f"{mine[0]['before']:.2f}"]
        for space in ("lora", "full"):
            after = [row["after"] for row in mine if row["space"] == space]
            cells.append(f"{sum(after) / len(after):.2f}" if after else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--spaces", nargs="+", default=["lora", "full"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    parser.add_argument("overrides", nargs="*", help="key.sub=value, as for zopeft tune")
    args = parser.parse_intermixed_args()
    rows = []
    for task in args.tasks:
        for space in args.spaces:
            for seed in args.seeds:
                row = {**run(task, space, seed, args), **about()}
                print(json.dumps(row), flush=True)
                rows.append(row)
                if args.keep:
                    keep("learning", [row])
    print(markdown(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
