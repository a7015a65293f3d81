"""What rounding does to probes of 16-bit weights: which weights they move, what gradient they give.

Projected gradients of a model in fp32 and in 16 bits, along the same directions, of the same
batch and from the same weights (those of 16 bits, which fp32 holds exactly): to nearest as
probes were rounded once, and as they are. Prints one JSON row a step and way.

    OMP_NUM_THREADS=1 python benchmarks/rounding.py MODEL --data DIR --keep
    OMP_NUM_THREADS=1 python benchmarks/rounding.py MODEL --data DIR --eps 1e-3 --directions 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rows import about, keep

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.kernels.plain import ROUNDINGS
from zopeft.models import load_model
from zopeft.noise import step_seed
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss


def slope(engine: Engine, model: Any, batch: Any, seed: int, eps: float) -> float:
    """Returns the projected gradient along one direction."""
    losses = []
    for step in (eps, -eps):
        with engine.perturbed(Direction(seed), step):
            losses.append(float(task_loss(model, batch)))
    return (losses[0] - losses[1]) / (2 * eps)


def unmoved(engine: Engine, eps: float, probes: int) -> dict[str, float]:
    """Returns the share of weights that probes show as they are: of matrices, of vectors."""
    found: dict[str, float] = {}
    for kind in ("matrices", "vectors"):
        blocks = [b for b in engine.blocks if (len(b.shape) == 1) == (kind == "vectors")]
        # The norms of the models at hand take their step in fp32.
        exact = kind == "vectors" and engine.rounding == "stochastic"
        once, ever, count = 0, 0, sum(block.numel for block in blocks)
        for block in blocks:
            flat = block.parameter.view(-1)
            out = torch.empty_like(flat, dtype=torch.float32 if exact else flat.dtype)
            still = torch.ones_like(flat, dtype=torch.bool)
            for step in range(probes):
                engine.kernels.shift(step_seed(0, step), block.address, 0, flat, eps, None, out)
                still &= out == flat
                once += int(still.sum()) if step == 0 else 0
            ever += int(still.sum())
        found[f"unmoved_{kind}"] = round(once / count, 4)
        found[f"unmoved_{kind}_by_{probes}"] = round(ever / count, 4)
    return found


def fit(found: list[float], exact: list[float]) -> dict[str, float]:
    """Returns how well gradients agree with exact ones."""
    both = torch.tensor([found, exact], dtype=torch.float64)
    error, size = (both[0] - both[1]).square().mean(), both[1].square().mean()
    return {
        "correlation": round(float(torch.corrcoef(both)[0, 1]), 4),
        "slope": round(float((both[0] * both[1]).mean() / size), 4),
        "noise": round(float((error / size).sqrt()), 4),
    }


@torch.no_grad()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a float model")
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--eps", nargs="+", type=float, default=[1e-3, 3e-4, 1e-4])
    parser.add_argument("--directions", type=int, default=100)
    parser.add_argument("--probes", type=int, default=20, help="after which weights are counted")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="most tokens of an example")
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    args = parser.parse_args()
    task = load_task(args.task)
    stored, tokenizer = load_model(args.model, args.dtype, device="cpu")
    exact, _ = load_model(args.model, args.dtype, device="cpu")
    exact.float()
    rows = load_rows(task, "train", args.data, limit=args.batch)
    data = TaskDataset(task, rows, tokenizer, args.length)
    batch = Collator(tokenizer)([data[index] for index in range(args.batch)])
    engines = [
        (model, Engine(zopeft.discover(model), carrier="modules")) for model in (exact, stored)
    ]
    shared = about()
    for eps in args.eps:
        found: dict[str, list[float]] = {name: [] for name in ("fp32", *ROUNDINGS)}
        for step in range(args.directions):
            seed = step_seed(0, step)
            found["fp32"].append(slope(engines[0][1], exact, batch, seed, eps))
            for rounding in ROUNDINGS:
                engines[1][1].rounding = rounding
                found[rounding].append(slope(engines[1][1], stored, batch, seed, eps))
        for rounding in ROUNDINGS:
            engines[1][1].rounding = rounding
            row = {
                "model": Path(args.model).name,
                "task": args.task,
                "batch": args.batch,
                "dtype": args.dtype,
                "eps": eps,
                "directions": args.directions,
                "rounding": rounding,
                "unit": "share of weights; of fp32's projected gradients",
                **unmoved(engines[1][1], eps, args.probes),
                **fit(found[rounding], found["fp32"]),
                **shared,
            }
            print(json.dumps(row), flush=True)
            if args.keep:
                keep("rounding", [row])


if __name__ == "__main__":
    main()
