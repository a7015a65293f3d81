"""Whether a build of zopeft is slower than another: its benchmark's rows beside the other's.

Runs `step_time.py` of both trees in turn, so that a busy machine slows them alike, each by
its own code, and compares the steps' ratios to two bare forward passes. Prints one JSON row a
case; with --keep they are appended to results/builds.jsonl. All flags after -- go to
`step_time.py`.

    git worktree add ../before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/builds.py ../before --rounds 3 --keep -- --clock cpu
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rows import about, keep

HERE = Path(__file__).resolve().parents[1]
WHAT = ("model", "space", "dtype", "case")
"""What makes rows of two builds the same measurement."""


def measured(tree: Path, flags: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of a tree's `step_time.py`, run by its own code."""
    run = subprocess.run(
        [sys.executable, "step_time.py", *flags],
        cwd=tree / "benchmarks",
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        sys.exit(f"step_time.py of {tree} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def commit(tree: Path) -> str:
    """Returns the commit that a tree stands on."""
    asked = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Measures both trees in turn and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="tree of the other build")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is run")
    parser.add_argument("--keep", action="store_true", help="append to results/builds.jsonl")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    trees = {"before": args.before.resolve(), "after": HERE}
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = defaultdict(
        lambda: {name: [] for name in trees}
    )
    for _ in range(args.rounds):
        for name, tree in trees.items():
            for row in measured(tree, flags):
                found[tuple(row[key] for key in WHAT)][name].append(row)
    rows = []
    for what, sides in found.items():
        if not all(sides.values()):
            continue
        ratios = {
            name: statistics.median(row["ratio_median"] for row in runs)
            for name, runs in sides.items()
        }
        row = {
            **dict(zip(WHAT, what, strict=True)),
            **{f"ratio_{name}": ratio for name, ratio in ratios.items()},
            **{f"commit_{name}": commit(tree) for name, tree in trees.items()},
            "value": round(ratios["after"] / ratios["before"], 3),
            "unit": "ratio to two forwards, after / before, medians",
            "rounds": args.rounds,
            **about(),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.keep:
        keep("builds", rows)


if __name__ == "__main__":
    main()
