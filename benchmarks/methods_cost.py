"""What a step of every method costs: time beside two bare forwards, memory beyond one.

Times are of one process, steps and bare forwards in turn. Memory is that of a process of its
own each, as in `memory.py`: ``state`` is what the method declares to keep, ``transient`` the
rest of the peak beyond a forward pass, both in bytes a trained weight (full weights in fp32).
``write`` is the time of a step's write, least of the same run, for each family of noise: to that
of a copy of weights and of state of their size (``to_copy``), and to the greater one of this copy
and of making the noise of as many directions in one pass (``to_floor``).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import MALLOC, peak_of
from methods_ground import Entry, entries
from rows import about
from step_time import in_space, random_llama

import zopeft
from zopeft.methods import METHODS
from zopeft.optim.state import PerElement

SHAPE = (512, 4, 4000)
"""Hidden size, layers and vocabulary: 17 M weights."""
BATCH, LENGTH = 4, 64
REPEATS, WRITES = 3, 6
SIZES = ((8, 64), (8, 128))
"""Rows and tokens a row at which groups are measured as well."""
STEPS = 2
"""Steps whose peak of memory is taken."""


FUSED = (
    *("mezo", "zo_finetuner", "meazo", "mezo_momentum", "mezo_adam", "r_adazo", "hizoo"),
    *("zo_adamu", "conmezo", "ldsd", "zo_sign"),
)
"""Methods whose write is one of single elements, and so can be as fast as a copy."""
NOISES = ("gaussian", "binomial", "rademacher")
DRAWN = {"zo_adamu": 2, "ldsd": 5}
"""Directions that a write is made of, where it is more than one."""


def fitted(entry: Entry, blocks: zopeft.Blocks, **options: Any) -> Entry:
    """Returns an entry with what it cannot do without, for blocks of a random model."""
    own = dict(entry.options)
    if entry.finetuner:
        own["finetuner"] = zopeft.FineTuner.initial(blocks)
    if "mask" in METHODS[entry.method].required:
        own["mask"] = zopeft.Mask({b.name: torch.arange(0, b.numel, 1000) for b in blocks})
    if METHODS[entry.method].groups:
        own |= {"groups": BATCH, "probes": "auto"}
    if entry.method == "zo_adamu":
        own["warmup"] = 0
    return Entry(entry.name, entry.method, options=own | options)


class Steps:
    """A method's steps on one batch of a random model.

    Args:
        entry: The method.
        model: The model.
        size: Rows of the batch and tokens a row; zeros for those of all methods.
        **options: Arguments of the method beside those of the entry.
    """

    def __init__(
        self, entry: Entry, model: Any, size: tuple[int, int] = (0, 0), **options: Any
    ) -> None:
        batch, length = size if any(size) else (BATCH, LENGTH)
        self.model = model
        blocks = zopeft.discover(model)
        self.method = fitted(entry, blocks, **options).make(blocks, None, 1e-9, 0)
        torch.manual_seed(0)
        self.ids = torch.randint(0, model.config.vocab_size, (batch, length))

    def loss(self) -> torch.Tensor:
        """Returns the batch's loss."""
        found: torch.Tensor = self.model(input_ids=self.ids, labels=self.ids).loss
        return found

    @property
    def closure(self) -> Any:
        """What a step calls: a plain function, where that does."""
        if not self.method.groups:
            return self.loss
        return zopeft.BatchLoss(self.model, {"input_ids": self.ids, "labels": self.ids})

    def probes(self) -> None:
        """Makes a step's first forwards, and no write."""
        self.method.estimate(self.closure)
        self.method._pending = None

    def __call__(self) -> None:
        """Makes a step."""
        self.method.step(self.closure)

    @torch.no_grad()
    def bare(self) -> None:
        """Runs two bare forward passes."""
        float(self.loss() - self.loss())


def seconds(call: Callable[[], Any]) -> float:
    """Returns the CPU time of a call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def timed(entry: Entry, model: Any) -> dict[str, Any]:
    """Returns forward passes a step, and a step's time to two bare ones and to its own."""
    steps = Steps(entry, model)
    steps()
    before = steps.method.forward_passes
    steps()
    forwards = steps.method.forward_passes - before
    pairs = [(seconds(steps.bare), seconds(steps)) for _ in range(REPEATS)]
    ratio = statistics.median(step / bare for bare, step in pairs)
    return {
        "forwards_a_step": forwards,
        "ratio_to_two_forwards": round(ratio, 3),
        "ratio_to_own_forwards": round(2 * ratio / forwards, 3),
    }


def written(entry: Entry, model: Any, noise: str) -> dict[str, float]:
    """Returns a write's time to that of copying as many bytes, and to what it cannot be below."""
    steps = Steps(entry, model, noise=noise)
    steps()
    method, losses = steps.method, itertools.cycle((2.0, 2.1, 1.9, 2.3, 2.2))

    def write() -> float:
        method.estimate(lambda: torch.tensor(next(losses)))
        return seconds(method.apply)

    states, drawn = states_of(method), DRAWN.get(entry.method, 1)
    here = torch.ones(method.blocks.numel)
    there, kernels = torch.zeros_like(here), method.engine.kernels

    def draw() -> None:
        kernels.update(3, 7, here, 1e-9, 1.0, None, False)

    rows = [
        ((1 + states) * seconds(lambda: there.copy_(here)), drawn * seconds(draw), write())
        for _ in range(WRITES)
    ]
    copy, noises, least = (min(times) for times in zip(*rows, strict=True))
    return {"to_copy": round(least / copy, 2), "to_floor": round(least / max(copy, noises), 2)}


def grouped(entry: Entry, model: Any, noise: str) -> dict[str, float]:
    """Returns what the two forwards of groups take, a direction a row, to two bare ones."""
    found = {}
    for rows, length in SIZES:
        steps = Steps(entry, model, (rows, length), noise=noise, groups=rows)
        steps()
        pairs = [(seconds(steps.bare), seconds(steps.probes)) for _ in range(REPEATS)]
        ratio = statistics.median(probes / bare for bare, probes in pairs)
        found[f"{rows}x{length}"] = round(ratio, 3)
    return found


def states_of(method: Any) -> int:
    """Returns how many numbers a weight a method keeps."""
    return sum(isinstance(kept, PerElement) for kept in method.keeps().values())


def peak(entry: Entry) -> dict[str, Any]:
    """Returns declared state and transient memory of full weights, in bytes a weight."""
    tiny = Steps(entry, random_llama((64, 2, 64), "float32"))
    tiny.ids = tiny.ids % 64
    # What a first step loads once, libraries and compiled kernels, is loaded before.
    tiny()
    steps = Steps(entry, random_llama(SHAPE, "float32"))
    with torch.no_grad():
        inference = peak_of(steps.loss, STEPS)
    state = steps.method.kept.bytes()
    beyond = peak_of(steps, STEPS) - inference
    size = steps.method.blocks.numel
    return {
        "state_bytes": round(state / size, 3),
        "transient_bytes": round(max(0, beyond - state) / size, 3),
    }


def measured(name: str) -> dict[str, Any]:
    """Returns the memory of an entry's steps, from a process of its own."""
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **MALLOC})
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_all(args: argparse.Namespace, path: Path) -> None:
    """Measures the entries that have no row yet.

    Args:
        args: The command line of `methods.py`.
        path: The rows' file.
    """
    torch.set_num_threads(1)
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["entry"] for line in lines}
    models = {space: in_space(space, random_llama(SHAPE, "float32")) for space in ("full", "lora")}
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries("initial"):
        if entry.name in done or entry.shuffled or (args.only and entry.name not in args.only):
            continue
        row: dict[str, Any] = {"entry": entry.name, "model": "h{} l{} v{}".format(*SHAPE)}
        row |= {"batch": BATCH, "length": LENGTH, "unit": "ratio; bytes a weight"}
        served = METHODS[entry.method].spaces
        if "full" not in served:
            continue
        own = {n: each for n, each in models.items() if n in served or "adapter" in served}
        row |= {space: timed(entry, model) for space, model in own.items()}
        if entry.name in FUSED:
            row["full"]["states"] = states_of(Steps(entry, models["full"]).method)
            row["full"]["write"] = {n: written(entry, models["full"], n) for n in NOISES}
        if METHODS[entry.method].groups:
            noises = ("gaussian", "rademacher", "low_rank")
            row["full"]["probes_to_two_forwards"] = {
                noise: grouped(entry, models["full"], noise) for noise in noises
            }
        row |= {"memory": measured(entry.name), **about()}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: row[k] for k in ("entry", *own, "memory")}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = next(one for one in entries("initial") if one.name == sys.argv[1])
    print(json.dumps(peak(wanted)))
