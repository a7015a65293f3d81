"""Time of a step whose two probes share work, as a ratio to two bare forward passes.

LoRA, and full weights (along low rank, and along noise that is drawn once for both probes), with
both probes in one forward and in two; and the top quarter of the layers trained with the layers
below run once and twice. The loss is that of ``zopeft tune``. All cases of a batch run interleaved.

    OMP_NUM_THREADS=1 python benchmarks/stacked.py --clock cpu
    OMP_NUM_THREADS=1 python benchmarks/stacked.py --clock cpu --hidden 768 --layers 12 --keep
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from rows import about, keep
from step_time import CLOCKS, add_shape, measure, random_llama

import zopeft
from zopeft.blocks import keep_trainable
from zopeft.tasks import task_loss

NOISES = ("low_rank", "gaussian", "rademacher")
ANSWER = 4
"""Tokens at the end of each row that a loss is taken on."""


def build(args: argparse.Namespace) -> Any:
    """Returns a random model of the given shape."""
    shape = (args.hidden, args.layers, args.vocab)
    return random_llama(shape, args.dtype).to(args.device)


def spaces(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what is measured: LoRA, the top quarter of both, and full weights."""
    top = list(range(args.layers - args.layers // 4, args.layers))
    lora = {"r": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    upper = LoraConfig(**lora, layers_to_transform=top)
    full = build(args)
    keep_trainable(full, rf"layers\.({'|'.join(map(str, top))})\.")
    return {
        "lora": get_peft_model(build(args), LoraConfig(**lora)).eval(),
        "lora, top quarter": get_peft_model(build(args), upper).eval(),
        "full, top quarter": full,
        **{f"full, {noise}": build(args) for noise in NOISES},
    }


def cases_of(
    space: str, model: Any, size: tuple[int, int], args: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Returns the measured cases of a space on one batch."""
    ids = torch.randint(0, args.vocab, size, device=args.device)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    closure = zopeft.BatchLoss(model, batch, task_loss)

    @torch.no_grad()
    def bare() -> None:
        float(closure() - closure())

    both = zopeft.BatchLoss(model, {k: v.repeat(2, 1) for k, v in batch.items()}, task_loss)

    @torch.no_grad()
    def twice() -> None:
        float(both())

    blocks = zopeft.discover(model)
    found = next((name for name in NOISES if name in space), None)
    noise = {} if found is None else {"noise": found}

    def steps(probes: str, sharing: bool, **options: Any) -> Callable[[], Any]:
        method = zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, probes=probes, **noise, **options)
        if not sharing:
            method.probing.sharing = None
        return lambda: method.step(closure)

    cases: dict[str, Callable[[], Any]] = {"two forwards": bare}
    cases["separate"] = steps("separate", False)
    if "top" in space:
        cases["lower layers shared"] = steps("separate", True)
    if "lora" in space or noise:
        # What stacking could come to, if the adapters cost nothing.
        cases["one forward of twice the rows"] = twice
        cases["stacked"] = steps("stacked", False)
        for count in args.directions:
            for probes in ("separate", "stacked"):
                name = f"{probes}, {count} one-sided"
                cases[name] = steps(probes, False, directions=count, sides="one")
    return cases


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_shape(parser, hidden=256)
    parser.set_defaults(layers=8, length=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--directions", type=int, nargs="+", default=[], help="also so many one-sided ones"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--space", nargs="+", default=[""], help="those whose name has a WORD")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--keep", action="store_true", help="append to results/stacked.jsonl")
    args = parser.parse_args()
    shared, rows = about(args.device), []
    table = Table("space", "batch", "case", "median ms", "ratio to two forwards (median, min)")
    for space, model in spaces(args).items():
        if not any(word in space for word in args.space):
            continue
        for batch in args.batch:
            times = measure(
                cases_of(space, model, (batch, args.length), args), args.repeats, args.clock
            )
            bare = times["two forwards"]
            for name, taken in times.items():
                ratios = [a / b for a, b in zip(taken, bare, strict=True)]
                row = {
                    "model": f"h{args.hidden} l{args.layers} v{args.vocab}",
                    "space": space,
                    "batch": f"{batch}x{args.length}",
                    "dtype": args.dtype,
                    "case": name,
                    "value": round(1e3 * statistics.median(taken), 2),
                    "unit": "ms a step, median",
                    "ratio_median": round(statistics.median(ratios), 3),
                    "ratio_of_minima": round(min(taken) / min(bare), 3),
                    "repeats": args.repeats,
                    "clock": args.clock,
                    **shared,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
                shown = f"{row['ratio_median']:.2f}, {row['ratio_of_minima']:.2f}"
                table.add_row(space, row["batch"], name, f"{row['value']:.1f}", shown)
    Console(stderr=True).print(table)
    if args.keep:
        keep("stacked", rows)


if __name__ == "__main__":
    main()
