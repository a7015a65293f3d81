"""What ``zopeft tune --steps 1`` on the embedded model spends its processor time on.

The command runs in processes of its own, each with a clock that is handed on: from library to
library as they are imported, and from stage to stage of the job. Each moment counts once, for what
was begun last. The clock itself takes some 2 %.

    OMP_NUM_THREADS=1 python benchmarks/startup_parts.py --keep
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
from pathlib import Path
from typing import Any

from rows import about, keep

HOME = Path(__file__).parents[1]
CLOCKED = """
import functools, importlib.machinery as machinery, json, sys, time
began, clock, spent, stack = time.process_time(), time.process_time, {}, ["the rest"]
at = began

def turn():
    global at
    now = clock()
    spent[stack[-1]] = spent.get(stack[-1], 0.0) + now - at
    at = now

def within(name, call, *given, **named):
    turn()
    stack.append(name)
    try:
        return call(*given, **named)
    finally:
        turn()
        stack.pop()

STAGES = {
    "zopeft.models.loading": {"load_model": "model and tokenizer"},
    "zopeft.tasks.rows": {"load_rows": "rows, encoded"},
    "zopeft.tasks.dataset": {"TaskDataset.__init__": "rows, encoded"},
    "zopeft.jobs.evaluate": {"measure": "evaluation before and after"},
    "zopeft.training.trainer": {"ZOTrainer.__init__": "step", "ZOTrainer.train": "step"},
    "zopeft.kernels.numba_cache": {"Kernel.ready": "kernels read"},
    "zopeft.jobs.together": {"save": "writing"},
    "zopeft.jobs.result_card": {"write_card": "writing"},
    "zopeft.jobs.folder": {"Folder.begin": "writing", "Folder.write": "writing"},
}

def wrapped(name, call):
    return functools.wraps(call)(lambda *given, **named: within(name, call, *given, **named))

for kind in (machinery.SourceFileLoader, machinery.ExtensionFileLoader):
    def exec_module(self, module, run=kind.exec_module):
        name = module.__name__
        library = "import " + name.partition(".")[0]
        within(library, run, self, module)
        for path, stage in STAGES.get(name, {}).items():
            owner = module
            *inside, last = path.split(".")
            for one in inside:
                owner = getattr(owner, one)
            setattr(owner, last, wrapped(stage, getattr(owner, last)))
    kind.exec_module = exec_module
kind.create_module = lambda self, spec, run=kind.create_module: within(
    "import " + spec.name.partition(".")[0], run, self, spec
)
place = sys.argv.pop(1)
from zopeft.cli.main import main
code = main()
turn()
with open(place, "w") as file:
    json.dump({"interpreter": began, **spent}, file)
sys.exit(code)
"""
GROUPS = {
    "torch": ("torch", "torchgen", "sympy", "mpmath", "functorch"),
    "transformers": ("transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate"),
    "peft": ("peft",),
    "numba": ("numba", "llvmlite"),
    "zopeft": ("zopeft",),
}


def once() -> dict[str, float]:
    """Tunes one step; returns seconds of the processor by what they were spent on."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/parts.json"
        words = [sys.executable, "-c", CLOCKED, place, "tune", "--task", "sst2", "--lora"]
        words += ["--steps", "1", "--out", f"{folder}/out"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # As an installed package has them.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, cwd=HOME, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        parts: dict[str, float] = json.loads(Path(place).read_text())
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found: dict[str, float] = {"whole": whole, "the end": whole - sum(parts.values())}
    for name, seconds in parts.items():
        group = name
        if name.startswith("import "):
            library = name.removeprefix("import ")
            group = next((g for g, some in GROUPS.items() if library in some), "others")
            group = f"import {group}"
        found[group] = found.get(group, 0.0) + seconds
    return found


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="append the row to results/")
    args = parser.parse_args()
    once()  # Compiles what there is to compile.
    runs = [once() for _ in range(args.times)]
    middle = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}
    for name, seconds in sorted(middle.items(), key=lambda pair: -pair[1]):
        print(f"{name:30} {1000 * seconds:7.0f} ms {100 * seconds / middle['whole']:5.1f} %")
    parts = {name: round(seconds, 3) for name, seconds in middle.items()}
    row: dict[str, Any] = {"parts": parts, "times": args.times, **about()}
    if args.keep:
        keep("startup_parts", [row])


if __name__ == "__main__":
    main()
