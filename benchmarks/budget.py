"""The budget of a step shared by first steps or first probes, against shares that are fixed.

Entries, all full weights and lr auto: MeZO; rows of token embeddings by frequency alone; a learned
fine-tuner with the shares that were learned, with those that its first steps' turns tell
(`zopeft.optim.turns`), and with those of first probes (`zopeft.optim.first_probes`); MeZO with
turns.
What a run measures with counts among its passes. Entries of a seed see the same batches.

A row a run is appended to results/budget.jsonl; a run whose row is there is not made again. With
--probes no run is made: E, h and their quotient of each sort of blocks are printed and kept, along
so many directions of each seed, a batch each.

    OMP_NUM_THREADS=1 python benchmarks/budget.py MODEL --data DIR --finetuner FOLDER
    OMP_NUM_THREADS=1 python benchmarks/budget.py MODEL --data DIR --finetuner FOLDER --probes 16
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from methods_ground import CLIP, Ground, learned
from methods_ground import Entry as Start
from rows import RESULTS, about, keep

import zopeft
from zopeft.engine import Direction
from zopeft.finetuner.digest import digest_of
from zopeft.methods import METHODS
from zopeft.noise import step_seed
from zopeft.optim.budget import Budget
from zopeft.tasks import task_loss
from zopeft.tasks.frequency import frequency_options

ENTRIES = ("turns", "measured", "learned", "rows", "mezo", "mezo turns")
SHARED = {"turns": "turns", "measured": "measured", "learned": "given", "mezo turns": "turns"}
"""What shares the budget, by entry; of others nothing."""
TASKS = ("sst2", "copa", "squad")
LAST = 0.2
"""Part of the steps, at the end, whose mean loss is told."""


def made(ground: Ground, name: str, finetuner: str, seed: int) -> Any:
    """Returns the method of an entry over the model."""
    given: dict[str, Any] = {"lr": "auto", "clip": CLIP, "probes": "separate", "seed": seed}
    if name in SHARED:
        given["budget"] = SHARED[name]
    if name in ("mezo", "rows", "mezo turns"):
        rows = "frequency" if name == "rows" else None
        given |= frequency_options(rows, None, ground.blocks, [ground.train])
        return METHODS["mezo"](ground.blocks, **given)
    given |= {"finetuner": learned(finetuner, False)}
    given |= frequency_options(None, given["finetuner"], ground.blocks, [ground.train])
    return METHODS["zo_finetuner"](ground.blocks, **given)


def run(ground: Ground, name: str, finetuner: str, seed: int, forwards: int) -> dict[str, Any]:
    """Trains from the start of a seed; returns what is told of it."""
    ground.reset(seed, Start("mezo", "mezo"))
    method = made(ground, name, finetuner, seed)
    method.probing.steps_planned = forwards // 2
    losses, begun = [], time.process_time()
    for batch in ground.feed(seed):
        if method.forward_passes + method.forwards + 1 > forwards:
            break
        losses.append(float(method.step(lambda batch=batch: task_loss(ground.model, batch))))
    budget, last = method.budget, losses[-max(1, round(LAST * len(losses))) :]
    return {
        "train_loss": round(statistics.fmean(last), 5),
        "value": round(ground.loss(ground.reported_on), 5),
        "unit": "nats a token of the answer, validation",
        "steps": len(losses),
        "forwards": method.forward_passes,
        "lr_began": method.rate.began,
        "lr_last": method.rate.lr,
        "factors": {}
        if budget.factors is None
        else dict(sorted(zip(budget.names, map(float, budget.factors), strict=True))),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


@torch.no_grad()
def probed(ground: Ground, finetuner: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Returns what many probes tell of each sort of blocks, all of the budget on it."""
    ground.reset(seed, Start("mezo", "mezo"))
    method = made(ground, "measured", finetuner, seed)
    method.engine.adopt()
    scales = method._scales().double().cpu()
    power = torch.tensor(ground.blocks.numels).double() * scales.square()
    sorts, feed, eps = Budget(ground.blocks, None).sorts(None), ground.feed(seed), method.eps
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in sorts}
    for number in range(count):
        batch = next(feed)
        here = float(task_loss(ground.model, batch))
        for name, sort in sorts.items():
            part = float(power[sorted(sort)].sum() / power.sum())
            own = torch.zeros(len(ground.blocks))
            own[sorted(sort)] = (scales[sorted(sort)] / math.sqrt(part)).float()
            line = Direction(step_seed(seed, -1 - number), own)
            pair = []
            for step in (eps, -eps):
                with method.engine.perturbed(line, step):
                    pair.append(float(task_loss(ground.model, batch)))
            slope = (pair[0] - pair[1]) / (2 * eps)
            seen[name].append((slope**2, (sum(pair) - 2 * here) / eps**2))
    found = []
    for name, pairs in seen.items():
        energy, curvature = (statistics.fmean(each) for each in zip(*pairs, strict=True))
        part = float(power[sorted(sorts[name])].sum() / power.sum())
        row = {"sort": name, "given": round(part, 4), "energy": energy, "curvature": curvature}
        found.append({**row, "value": energy / curvature, "unit": "E over h", "probes": count})
    return found


def main() -> None:
    """Makes what is still to be made, and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a pretrained model")
    parser.add_argument("--data", required=True, help="folder that holds one folder a task")
    parser.add_argument("--finetuner", required=True, help="learned on the model")
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=ENTRIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--forwards", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="most tokens of a row")
    parser.add_argument("--probes", type=int, default=0, help="look at sorts, make no run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, kept = RESULTS / "budget.jsonl", []
    if path.exists():
        kept = [json.loads(line) for line in path.read_text().splitlines()]
    for task in args.task:
        ground = Ground(args.model, args.data, task, "full", args.batch, args.length, False)
        shared = {
            "model": Path(args.model).resolve().name,
            "task": task,
            "batch": args.batch,
            "length": args.length,
            "finetuner": digest_of(zopeft.FineTuner.from_pretrained(args.finetuner)),
        }
        if args.probes:
            for seed in args.seeds:
                rows = probed(ground, args.finetuner, seed, args.probes)
                told = {"kind": "probes", **shared, "seed": seed}
                rows = [{**told, **row, **about()} for row in rows]
                keep("budget", rows)
                print(*map(json.dumps, rows), sep="\n", flush=True)
            continue
        for seed in args.seeds:
            for name in args.only:
                told = {"kind": "run", **shared, "entry": name, "seed": seed}
                told["budget"] = args.forwards
                if name == "measured":
                    # Runs of before had two of a sort's four directions probed on one side.
                    told["sides"] = "both"
                if any(told.items() <= row.items() for row in kept):
                    continue
                row = {**told, **run(ground, name, args.finetuner, seed, args.forwards), **about()}
                keep("budget", [row])
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
