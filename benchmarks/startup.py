"""Time to the first step: ``zopeft tune --steps 1`` on the embedded model, from shell to done.

Builds run in turn, a process each, and what counts is their processor time (user and system), whose
ratio does not depend on what else the machine does. A build is a checkout of this repository; the
first is what the others are compared with.

    git worktree add ../before 68506dc
    python benchmarks/startup.py ../before . --keep
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import about, keep

LAUNCH = """
import importlib.util, sys
from pathlib import Path
build = Path(sys.argv.pop(1))
sys.path.insert(0, str(build))
import zopeft
for name in ("cli", "recipes"):
    folder = build / name
    spec = importlib.util.spec_from_file_location(
        f"zopeft.{name}", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
from zopeft.cli.main import main
sys.exit(main())
"""
"""A checkout's own command, whatever checkout is installed."""


def once(build: Path, space: str) -> dict[str, float]:
    """Tunes one step with a build; returns seconds of processor and of the clock."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", LAUNCH, str(build)]
        words += ["tune", "--task", "sst2", f"--{space}"]
        words += ["--steps", "1", "--out", f"{folder}/out"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # As an installed package has them.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, cwd=build, env=environment, check=True, capture_output=True)
        after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": spent, "wall": ended - started}


def commit_of(build: Path) -> str:
    """Returns the commit of a checkout."""
    words = ["git", "-C", str(build), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("builds", nargs="+", type=lambda text: Path(text).resolve())
    parser.add_argument("--space", default="lora", choices=("lora", "full"))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    args = parser.parse_args()
    for build in args.builds:
        once(build, args.space)  # Compiles what there is to compile.
    found: dict[Path, list[dict[str, float]]] = {build: [] for build in args.builds}
    for _ in range(args.times):
        for build in args.builds:
            found[build].append(once(build, args.space))
    first = [one["cpu"] for one in found[args.builds[0]]]
    for build, times in found.items():
        cpu = [one["cpu"] for one in times]
        ratios = [own / base for own, base in zip(cpu, first, strict=True)]
        row: dict[str, Any] = {
            "build": commit_of(build),
            "space": args.space,
            "cpu_seconds": round(statistics.median(cpu), 3),
            "wall_seconds": round(statistics.median(one["wall"] for one in times), 3),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            **about(),
        }
        print(json.dumps(row), flush=True)
        if args.keep:
            keep("startup", [row])


if __name__ == "__main__":
    main()
