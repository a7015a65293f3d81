"""Memory of one step on a CPU beyond that of a forward pass of the same batch.

Each case runs in a process of its own: the model is loaded, a forward pass gives the peak of
resident memory that inference needs, and then some steps give theirs. ``value`` is the latter
less the former, ``allowed`` what zopeft grants itself: on full weights one scratch chunk
and 1 % of the weights, on LoRA twice the adapter.

    OMP_NUM_THREADS=1 python benchmarks/memory.py
    OMP_NUM_THREADS=1 python benchmarks/memory.py --hidden 768 --layers 12 --length 128 --keep
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain_mezo import PlainMeZO
from rich.console import Console
from rich.table import Table
from rows import about, keep
from step_time import add_shape, in_space, random_llama

import zopeft

MIB = 2**20
SCRATCH = 64 * MIB
STEPS = 3
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has glibc give back at once what is freed: it is memory in use that is compared."""
NOISES = ("gaussian", "binomial", "rademacher", "low_rank")
SPACES = ("full", "lora")


def step_of(name: str, blocks: zopeft.Blocks, model: Any) -> Callable[[Any], Any]:
    """Returns the step of a case."""
    if name == "plain MeZO":
        return PlainMeZO(model, 0.0, 1e-3).step
    if name == "Adam":
        return AdamStep(model).step
    if name == "ZOFineTuner":
        finetuner = zopeft.FineTuner.initial(blocks)
        return zopeft.ZOFineTuner(blocks, finetuner, lr=1e-9, eps=1e-3).step
    return zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, noise=name).step


CASES = ("plain MeZO", "Adam", *NOISES, "ZOFineTuner")


class AdamStep:
    """First-order fine-tuning, for scale."""

    def __init__(self, model: Any) -> None:
        self.optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad], lr=1e-9
        )

    def step(self, closure: Callable[[], Any]) -> None:
        """Makes one step."""
        with torch.enable_grad():
            closure().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def resident(field: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this benchmark needs Linux")


def peak_of(call: Callable[[], Any], times: int) -> int:
    """Returns the peak of resident memory while a call is made some times."""
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(times):
        call()
    return resident("VmHWM")


@torch.no_grad()
def child(space: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one case in this process and returns its figures."""
    # What a first step loads once, libraries and compiled kernels, is loaded before.
    tiny = random_llama((64, 1, 64), args.dtype)
    ids = torch.zeros((1, 8), dtype=torch.long)
    tiny_blocks = zopeft.discover(tiny)
    step_of(name, tiny_blocks, tiny)(lambda: tiny(input_ids=ids, labels=ids).loss)
    before = resident("VmRSS")
    model = in_space(space, random_llama((args.hidden, args.layers, args.vocab), args.dtype))
    ids = torch.randint(0, args.vocab, (args.batch, args.length))

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return loss

    inference = peak_of(closure, STEPS)
    blocks = zopeft.discover(model)
    step = step_of(name, blocks, model)
    peak = peak_of(lambda: step(closure), STEPS)
    trained = sum(b.numel * b.parameter.element_size() for b in blocks)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "space": space,
        "dtype": args.dtype,
        "case": name,
        "elements": sum(blocks.numels),
        "value": round((peak - inference) / MIB, 1),
        "unit": "MiB beyond a forward pass",
        "allowed": round((SCRATCH + weights / 100 if space == "full" else 2 * trained) / MIB, 1),
        "weights": round(weights / MIB, 1),
        "inference": round((inference - before) / MIB, 1),
        "ratio": round((peak - before) / (inference - before), 3),
        "steps": STEPS,
    }


def measured(space: str, name: str) -> dict[str, Any]:
    """Runs one case in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", space, name]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **MALLOC})
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser, hidden=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--space", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--case", nargs=2, metavar=("SPACE", "NAME"), help="this one, here")
    parser.add_argument("--keep", action="store_true", help="append to results/memory.jsonl")
    args = parser.parse_args()
    if args.case:
        space, name = args.case
        print(json.dumps(child(space, name, args)))
        return
    shape = f"h{args.hidden} l{args.layers} v{args.vocab}, batch {args.batch}x{args.length}"
    shared, rows = about(), []
    table = Table("space", "case", "MiB beyond a forward", "allowed", "to inference")
    for space in args.space:
        for name in args.only:
            row = {"model": shape, **measured(space, name), **shared}
            rows.append(row)
            print(json.dumps(row), flush=True)
            allowed = "" if name in ("plain MeZO", "Adam") else f"{row['allowed']:.1f}"
            table.add_row(space, name, f"{row['value']:.1f}", allowed, f"{row['ratio']:.3f}")
    Console(stderr=True).print(table)
    if args.keep:
        keep("memory", rows)


if __name__ == "__main__":
    main()
