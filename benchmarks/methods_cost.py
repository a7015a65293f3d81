"""What a step of every method costs: time beside two bare forwards, memory beyond one.

Times are of one process, steps and bare forwards in turn. Memory is that of a process of its
own each, as in `memory.py`: ``state`` is what the method declares to keep, ``transient`` the
rest of the peak beyond a forward pass, both in bytes a trained weight (full weights in fp32).
``write_to_copy`` is the time of a step's write to that of a copy of weights and of state of
their size, least times of the same run.
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
from methods_ground import AS_IT_IS, Entry, entries
from rows import about
from step_time import in_space, random_llama

import zopeft
from zopeft.optim.state import PerElement

SHAPE = (512, 4, 4000)
"""Hidden size, layers and vocabulary: 17 M weights."""
BATCH, LENGTH = 4, 64
REPEATS = 4
STEPS = 2
"""Steps whose peak of memory is taken."""


def learned_on(entry: Entry, blocks: zopeft.Blocks) -> Entry:
    """Returns an entry with a fine-tuner for blocks that none has been learned on."""
    if not entry.finetuner:
        return entry
    options = {**entry.options, "finetuner": zopeft.FineTuner.initial(blocks)}
    return Entry(entry.name, entry.method, options=options)


class Steps:
    """A method's steps on one batch of a random model.

    Args:
        entry: The method.
        model: The model.
    """

    def __init__(self, entry: Entry, model: Any) -> None:
        self.model, self.forwards = model, 0
        blocks = zopeft.discover(model)
        self.method = learned_on(entry, blocks).make(blocks, None, 1e-9, 0)
        torch.manual_seed(0)
        self.ids = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))

    def loss(self) -> torch.Tensor:
        """Returns the batch's loss."""
        self.forwards += 1
        found: torch.Tensor = self.model(input_ids=self.ids, labels=self.ids).loss
        return found

    def __call__(self) -> None:
        """Makes a step."""
        self.method.step(self.loss)

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
    before = steps.forwards
    steps()
    forwards = steps.forwards - before
    pairs = [(seconds(steps.bare), seconds(steps)) for _ in range(REPEATS)]
    ratio = statistics.median(step / bare for bare, step in pairs)
    return {
        "forwards_a_step": forwards,
        "ratio_to_two_forwards": round(ratio, 3),
        "ratio_to_own_forwards": round(2 * ratio / forwards, 3),
    }


def written(entry: Entry, model: Any) -> dict[str, Any]:
    """Returns a write's time to that of copying as many bytes: weights, and state as large."""
    steps = Steps(entry, model)
    steps()
    method, losses = steps.method, itertools.cycle((2.0, 2.1, 1.9, 2.3, 2.2))

    def write() -> float:
        method.estimate(lambda: torch.tensor(next(losses)))
        return seconds(method.apply)

    states = sum(isinstance(kept, PerElement) for kept in method.keeps().values())
    here = torch.ones(method.blocks.numel)
    there = torch.zeros_like(here)
    pairs = [((1 + states) * seconds(lambda: there.copy_(here)), write()) for _ in range(REPEATS)]
    least = [min(times) for times in zip(*pairs, strict=True)]
    return {"states": states, "write_to_copy": round(least[1] / least[0], 2)}


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
        row |= {space: timed(entry, model) for space, model in models.items()}
        if entry.name not in AS_IT_IS:
            row["full"] |= written(entry, models["full"])
        row |= {"memory": measured(entry.name), **about()}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: row[k] for k in ("entry", *models, "memory")}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = next(one for one in entries("initial") if one.name == sys.argv[1])
    print(json.dumps(peak(wanted)))
