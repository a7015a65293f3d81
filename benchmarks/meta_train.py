"""Memory and time of meta-training, against two copies of the model and against plain SGD.

Each case runs in a process of its own: zopeft's trainers, Algorithm 2 as it is usually
written (a deep copy of the model takes the judged step, gradients of both are kept), and
first-order SGD of as many steps on the same batches. ``extra`` is the peak of resident
memory less that after loading the model, ``value`` the peak less that before loading it;
time is the process's own CPU time a step, without the first one.

    python benchmarks/meta_train.py
    python benchmarks/meta_train.py --hidden 1024 --layers 16 --cases "zopeft, signal" --keep
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rows import about, keep
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.finetuner import STATE_FEATURES, FineTuner
from zopeft.meta import MetaSettings
from zopeft.meta.paper_trainer import PaperTrainer
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.state_trainer import StateTrainer
from zopeft.tasks import task_loss
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.sampling import draw_labels

MIB = 2**20
Batch = dict[str, Tensor]
Tick = Callable[..., None]


def resident(field: str) -> float:
    """Returns VmRSS or VmHWM of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise RuntimeError(f"no {field}")


def build(args: argparse.Namespace) -> Any:
    """Returns the model of a folder, or a random Llama of the given shape."""
    torch.manual_seed(0)
    if args.model:
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 64),
    )
    return LlamaForCausalLM(config).eval()


def batches(args: argparse.Namespace) -> Iterator[tuple[str, Batch]]:
    """Yields random batches, of which the last quarter of the tokens is the answer."""
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(0, args.vocab, (args.batch, args.length), generator=generator)
        labels = ids.clone()
        labels[:, : args.length * 3 // 4] = IGNORED
        mask = torch.ones_like(ids)
        yield "random", {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sgd(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """First-order fine-tuning."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _, (_, batch) in zip(range(args.steps), batches(args), strict=False):
        optimizer.zero_grad()
        task_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tick()


class PlainPertNN(nn.Module):
    """One block's network, on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 64), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the raw scale, 0-dim."""
        scale: Tensor = self.last(torch.tanh(self.first(x))).abs()
        return scale.squeeze(-1)


class TwoCopies:
    """Algorithm 2 as it is usually written: a copy of the model takes the judged step."""

    def __init__(self, model: Any, eps: float, lr_zo: float) -> None:
        self.model, self.twin = model, copy.deepcopy(model)
        self.weights, self.copies = list(model.parameters()), list(self.twin.parameters())
        self.nets = nn.ModuleList(PlainPertNN() for _ in self.weights)
        self.eps, self.lr_zo = eps, lr_zo
        self.losses, self.last = torch.zeros(2), torch.ones(len(self.weights))
        self.adam = torch.optim.SGD(self.nets.parameters(), lr=1e-2)
        self.sgd = torch.optim.SGD(model.parameters(), lr=1e-2)

    def scales(self) -> Tensor:
        """Returns the normalised scales [N], differentiable in the networks."""
        rows = [
            torch.stack([w.mean(), w.var(), *self.losses, last])
            for w, last in zip(self.weights, self.last, strict=True)
        ]
        raw = torch.stack([net(row.detach()) for net, row in zip(self.nets, rows, strict=True)])
        self.last = raw.detach()
        counts = torch.tensor([float(w.numel()) for w in self.weights])
        return raw * (counts.sum() / (counts * raw.square()).sum()).sqrt()

    @torch.no_grad()
    def move(self, weights: list[Any], seed: int, scales: Tensor, step: float) -> None:
        """Adds ``step * scale * z`` to the weights in place."""
        torch.manual_seed(seed)
        for weight, scale in zip(weights, scales.tolist(), strict=True):
            weight.data.add_(torch.randn_like(weight), alpha=step * scale)

    def step(self, seed: int, batch: Batch) -> None:
        """One meta-step and one first-order step."""
        scales = self.scales()
        fixed = scales.detach()
        with torch.no_grad():
            self.move(self.weights, seed, fixed, self.eps)
            plus = task_loss(self.model, batch)
            self.move(self.weights, seed, fixed, -2 * self.eps)
            minus = task_loss(self.model, batch)
            self.move(self.weights, seed, fixed, self.eps)
            self.losses = torch.stack([plus, minus])
            grad = float(plus - minus) / (2 * self.eps)
            for mine, other in zip(self.copies, self.weights, strict=True):
                mine.copy_(other)
        self.move(self.copies, seed, fixed, -self.lr_zo * grad)
        self.twin.zero_grad()
        task_loss(self.twin, batch).backward()  # type: ignore[no-untyped-call]
        torch.manual_seed(seed)
        inner = torch.stack([(c.grad * torch.randn_like(c)).sum() for c in self.copies])
        self.adam.zero_grad()
        (scales * (-self.lr_zo * grad) * inner).sum().backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.sgd.zero_grad()
        task_loss(self.model, batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.sgd.step()


def two_copies(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """Algorithm 2 with a deep copy."""
    plain = TwoCopies(model, 1e-3, 1e-6)
    for step, (_, batch) in zip(range(args.steps), batches(args), strict=False):
        plain.step(step, batch)
        tick()


def learn(model: Any, args: argparse.Namespace, tick: Tick, **chosen: Any) -> None:
    """Meta-training by one of zopeft's trainers."""
    blocks = zopeft.discover(model)
    settings = MetaSettings.of(steps=args.steps, reset_every=0, windows=2, **chosen)
    settings = settings.decided(blocks.space)
    moving = settings.policy == "state"
    networks: dict[str, Any] = {"capacity": settings.capacity, "rows": settings.token_rows}
    if moving:
        networks.update(features=STATE_FEATURES, output="bounded")
    finetuner = FineTuner.initial(blocks, rank=settings.rank, mix=settings.mix, **networks)
    counts = torch.ones(args.vocab)
    given = (settings, blocks, finetuner)
    trainer: Any
    if moving:
        trainer = StateTrainer(
            model, batches(args), task_loss, draw_labels, *given, ["random"], counts
        )
    elif settings.objective == "signal":
        trainer = SignalTrainer(model, batches(args), task_loss, draw_labels, *given, counts)
    else:
        trainer = PaperTrainer(model, batches(args), task_loss, *given)
    trainer.train(tick)


def paper(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """zopeft, the paper's objective."""
    learn(model, args, tick, objective="paper")


def signal(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """The default: the signal objective, subspaces and rows by frequency."""
    learn(model, args, tick)


def scales(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """zopeft, the signal objective, scales alone."""
    learn(model, args, tick, capacity="scales", token_rows="none")


def state(model: Any, args: argparse.Namespace, tick: Tick) -> None:
    """zopeft, the signal objective with scales that move with the state."""
    learn(model, args, tick, objective="signal", policy="state")


CASES = {
    "SGD": sgd,
    "two copies": two_copies,
    "zopeft, paper": paper,
    "zopeft, signal": signal,
    "zopeft, signal, scales": scales,
    "zopeft, signal, state": state,
}


BASES = ("SGD", "two copies")
"""What all cases are compared with."""


def child(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs one case in this process and returns its figures."""
    # What the first step loads once, libraries and compiled kernels, is loaded before.
    small = {"hidden": 64, "layers": 1, "vocab": 64, "steps": 4, "model": None}
    tiny = argparse.Namespace(**{**vars(args), **small})
    CASES[name](build(tiny), tiny, lambda *_: None)
    before = resident("VmRSS")
    model = build(args)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loaded = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    ticks = []
    CASES[name](model, args, lambda *_: ticks.append(time.process_time()))
    peak = resident("VmHWM")
    # Two steps, since the signal objective draws labels at every other one.
    steps = (len(ticks) - 1) // 2 * 2
    return {
        "elements": sum(p.numel() for p in model.parameters()),
        "case": name,
        "value": round(peak - before, 1),
        "unit": "MiB at peak, with the model",
        "extra": round(peak - loaded, 1),
        "seconds_a_step": round((ticks[steps] - ticks[0]) / steps, 4),
        "steps": args.steps,
        "clock": "cpu",
    }


def measured(name: str) -> dict[str, Any]:
    """Runs one case in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--case", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a model, in place of a random one")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--case", choices=list(CASES), help="run this one here, in this process")
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), help="only these, beside those compared with"
    )
    parser.add_argument("--keep", action="store_true", help="append to results/meta_train.jsonl")
    args = parser.parse_args()
    if args.model:
        args.vocab = AutoConfig.from_pretrained(args.model).vocab_size
    if args.case:
        print(json.dumps(child(args.case, args)))
        return
    shape = f"h{args.hidden} l{args.layers} v{args.vocab}" if not args.model else args.model
    shape = f"{Path(shape).name}, batch {args.batch}x{args.length}"
    names = [name for name in CASES if name in (*BASES, *(args.cases or CASES))]
    rows = [{"model": shape, **measured(name), **about()} for name in names]
    figures = {row["case"]: row for row in rows}
    table = Table("case", "peak MiB", "beyond the model", "to two copies", "s a step", "to SGD")
    for row in rows:
        row["memory_ratio"] = round(row["value"] / figures["two copies"]["value"], 3)
        row["extra_ratio"] = round(row["extra"] / figures["two copies"]["extra"], 3)
        row["time_ratio"] = round(row["seconds_a_step"] / figures["SGD"]["seconds_a_step"], 3)
        print(json.dumps(row))
        table.add_row(
            row["case"],
            f"{row['value']:.0f}",
            f"{row['extra']:.0f}",
            f"{row['memory_ratio']:.2f} ({row['extra_ratio']:.2f} beyond the model)",
            f"{row['seconds_a_step']:.3f}",
            f"{row['time_ratio']:.2f}",
        )
    Console(stderr=True).print(table)
    if args.keep:
        keep("meta_train", rows)


if __name__ == "__main__":
    main()
