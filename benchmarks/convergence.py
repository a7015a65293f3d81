"""Whether cheap noise and bf16 weights converge as Gaussian noise and fp32 weights do.

Part noise: MeZO with each family of noise in fp32, at the rate of a grid that does best on
seed 0, then on other seeds. Part bf16: MeZO in bf16 beside fp32, and MeZO as it is usually
written (in place, `plain_mezo.py`) in both; how far a run without updates (lr 0) moves the
weights. Full weights, a constant rate; all cases of a seed see the same batches.

Prints one JSON row a run and tables in Markdown. With --keep the rows are appended to
results/convergence.jsonl, and results/convergence.png is drawn of all kept ones.

    python benchmarks/convergence.py MODEL --data DIR --task sst2 --keep
    python benchmarks/convergence.py MODEL --data DIR --parts bf16 --steps 300
    python benchmarks/convergence.py --parts             # only draws what is kept
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from convergence_report import SEARCHED, best_rate, draw, markdown, reported
from plain_mezo import PlainMeZO
from rows import RESULTS, about, keep

import zopeft
from zopeft.errors import RunError
from zopeft.models import load_model
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss
from zopeft.tasks.evaluation import mean_loss

POINTS = 100
"""Points that a run's curve is kept as, each the mean loss of the steps since the last."""
BLOWN = 3.0
"""A run is broken off once the mean loss of 20 steps is so many times that of the first 20."""


@dataclass(frozen=True)
class Case:
    """A way of training: method, dtype and how probes are rounded to it."""

    name: str
    dtype: str = "float32"
    plain: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    rounding: str = "stochastic"

    def step(self, model: Any, lr: float, eps: float, seed: int) -> Callable[[Any], Any]:
        """Returns the function that makes one step of a closure and returns its loss."""
        if self.plain:
            # Far from each other's seeds, which count the steps.
            return PlainMeZO(model, lr, eps, first_seed=seed * 1_000_000).step
        blocks = zopeft.discover(model)
        method = zopeft.MeZO(blocks, lr=lr, eps=eps, seed=seed, **self.options)
        method.engine.rounding = self.rounding
        return method.step


NOISES = {
    name: Case(name, options={"noise": name}) for name in ("gaussian", "binomial", "rademacher")
} | {
    f"low rank {rank}": Case(f"low rank {rank}", options={"noise": "low_rank", "rank": rank})
    for rank in (1, 4)
}
PRECISIONS = {
    case.name: case
    for case in (
        Case("zopeft, fp32"),
        Case("zopeft, bf16", "bfloat16"),
        Case("zopeft, bf16, probes to nearest", "bfloat16", rounding="nearest"),
        Case("plain, fp32", plain=True),
        Case("plain, bf16", "bfloat16", plain=True),
    )
}


class Bench:
    """Model and data; makes runs.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.models: dict[str, Any] = {}
        self.untrained: dict[str, float] = {}
        self.task = load_task(args.task)
        _, self.tokenizer = load_model(args.model)
        self.train = load_rows(self.task, "train", args.data)
        self.validation = load_rows(self.task, "validation", args.data, limit=args.eval)
        self.encoded = TaskDataset(self.task, self.train, self.tokenizer, args.length)
        self.shared = about()

    def model(self, dtype: str) -> Any:
        """Returns a copy of the model, at its start."""
        if dtype not in self.models:
            model, _ = load_model(self.args.model, dtype, device="cpu")
            self.models[dtype], self.untrained[dtype] = model, self.loss(model)
        return copy.deepcopy(self.models[dtype])

    def batches(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yields training batches without end, the same of a seed."""
        collate, size = Collator(self.tokenizer), self.args.batch
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.encoded), generator=generator).tolist()
            for first in range(0, len(order) - size + 1, size):
                yield collate([self.encoded[index] for index in order[first : first + size]])

    def loss(self, model: Any) -> float:
        """Returns the loss over the validation rows; infinite where it is not finite."""
        found = mean_loss(
            model, self.tokenizer, self.task, self.validation, max_length=self.args.length
        )
        return found if math.isfinite(found) else math.inf

    def run(self, part: str, case: Case, lr: float, seed: int) -> dict[str, Any]:
        """Trains once and returns the row; with --resume, one that is kept already."""
        args = self.args
        told = {
            "part": part,
            "case": case.name,
            "model": Path(args.model).name,
            "task": args.task,
            "lr": lr,
            "seed": seed,
            "steps": args.steps,
            "batch": args.batch,
            "eps": args.eps,
        }
        for row in kept() if args.resume else []:
            if told.items() <= row.items():
                return row
        model = self.model(case.dtype)
        begun = time.process_time()
        losses = self._steps(model, case, lr, seed, args.steps)
        seconds = time.process_time() - begun
        diverged = len(losses) < args.steps
        row = {
            **told,
            "unit": f"nats over {len(self.validation)} validation rows",
            "loss_before": round(self.untrained[case.dtype], 4),
            "loss_after": None if diverged else round(self.loss(model), 4),
            "loss_of_run": None if diverged else round(statistics.fmean(losses), 4),
            "diverged": diverged,
            "drift": self.drift(case) if part == "bf16" and seed == SEARCHED else None,
            "cpu_seconds": round(seconds, 1),
            "curve": points(losses, math.ceil(args.steps / POINTS)),
            **self.shared,
        }
        print(json.dumps(row), flush=True)
        if args.keep:
            keep("convergence", [row])
        return row

    def drift(self, case: Case) -> float:
        """Returns how far steps at lr 0 move the weights, relative to their norm."""
        model = self.model(case.dtype)
        start = [p.detach().double().clone() for p in model.parameters()]
        self._steps(model, case, 0.0, SEARCHED, self.args.drift_steps)
        pairs = zip(model.parameters(), start, strict=True)
        moved = sum(float((p.detach().double() - s).square().sum()) for p, s in pairs)
        return math.sqrt(moved / sum(float(s.square().sum()) for s in start))

    @torch.no_grad()
    def _steps(self, model: Any, case: Case, lr: float, seed: int, count: int) -> list[float]:
        """Returns the steps' losses; fewer than `count` where the run diverged."""
        step, feed = case.step(model, lr, self.args.eps, seed), self.batches(seed)
        losses: list[float] = []
        for _ in range(count):
            batch = next(feed)
            try:
                losses.append(float(step(lambda batch=batch: task_loss(model, batch))))
            except RunError:
                break
            last = statistics.fmean(losses[-20:])
            if not math.isfinite(last) or last > BLOWN * statistics.fmean(losses[:20]):
                break
        return losses


def points(losses: list[float], width: int) -> list[float | None]:
    """Returns the means of `width` losses each; None where they are not finite."""
    means = [
        statistics.fmean(losses[first : first + width]) for first in range(0, len(losses), width)
    ]
    return [round(mean, 3) if math.isfinite(mean) else None for mean in means]


def kept() -> list[dict[str, Any]]:
    """Returns the rows that are kept."""
    path = RESULTS / "convergence.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    """Runs, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder of a float model")
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--parts", nargs="*", default=["noise", "bf16"], choices=["noise", "bf16"])
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=list(NOISES))
    parser.add_argument("--rates", nargs="+", type=float, default=[9e-5, 1.3e-4, 1.9e-4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of part noise")
    parser.add_argument("--bf16-seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--bf16-rate", type=float, default=9e-5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--drift-steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=96, help="most tokens of an example")
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--eval", type=int, default=400, help="validation rows")
    parser.add_argument("--keep", action="store_true", help="append the rows to results/")
    parser.add_argument("--resume", action="store_true", help="make no run again that is kept")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    bench = Bench(args) if args.parts else None
    if bench and "noise" in args.parts:
        for name in args.noises:
            rows += [bench.run("noise", NOISES[name], lr, SEARCHED) for lr in args.rates]
            lr = best_rate(rows, name)
            rows += [bench.run("noise", NOISES[name], lr, s) for s in args.seeds if lr]
    if bench and "bf16" in args.parts:
        for seed in args.bf16_seeds:
            for case in PRECISIONS.values():
                rows.append(bench.run("bf16", case, args.bf16_rate, seed))
    if args.keep or not args.parts:
        rows = kept()
        parts = {"noise": NOISES, "bf16": PRECISIONS}
        groups = {p: {c: reported(rows, p, c) for c in cases} for p, cases in parts.items()}
        draw(groups, RESULTS / "convergence.png")
    for part, cases in (("noise", NOISES), ("bf16", PRECISIONS)):
        print(markdown(rows, part, cases), file=sys.stderr)


if __name__ == "__main__":
    main()
