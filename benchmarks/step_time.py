"""Time of one zeroth-order step as a ratio to two bare forward passes of the same batch.

Compares, in one run and interleaved, the steps of zopeft's methods with two bare forwards
and with MeZO as it is usually written: in place, torch.normal, four passes over the
weights. Prints one JSON row a measurement and a table.

    python benchmarks/step_time.py                       # the embedded model, LoRA and full
    python benchmarks/step_time.py --hidden 768 --layers 12 --length 128 --space full --keep
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from plain_mezo import PlainMeZO
from rich.console import Console
from rich.table import Table
from rows import about, keep
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zopeft


def build(args: argparse.Namespace) -> Any:
    """Returns the embedded model, or a random one of the given shape."""
    if not args.hidden:
        from zopeft.embedded import MODEL_DIR

        return AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 64),
    )
    return LlamaForCausalLM(config)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    cases: dict[str, Callable[[], Any]], repeats: int, clock: str
) -> dict[str, list[float]]:
    """Times all cases in turn, so that a busy machine slows them alike."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(repeats):
        for name, case in cases.items():
            begun = now()
            case()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(now() - begun)
    return times


def cases_of(space: str, args: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], int]:
    """Returns the measured cases of a space and the number of trained elements."""
    torch.manual_seed(0)
    model = build(args).eval().to(args.device, getattr(torch, args.dtype))
    if space == "lora":
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config).eval()
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (args.batch, args.length), device=args.device)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return loss

    @torch.no_grad()
    def bare() -> None:
        float(closure() - closure())

    blocks = zopeft.discover(model)
    cases: dict[str, Callable[[], Any]] = {"two forwards": bare}
    plain = PlainMeZO(model, 0.0, 1e-3)
    cases["plain MeZO"] = lambda: plain.step(closure)
    for noise in args.noise:
        method = zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, noise=noise)
        cases[f"zopeft MeZO, {noise}"] = lambda method=method: method.step(closure)
    finetuner = zopeft.FineTuner.initial(blocks)
    learned = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-9, eps=1e-3)
    cases["zopeft ZOFineTuner, gaussian"] = lambda: learned.step(closure)
    return cases, sum(blocks.numels)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=0, help="0: the embedded model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--space", nargs="+", default=["lora", "full"])
    parser.add_argument("--noise", nargs="+", default=["gaussian", "binomial", "rademacher"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: time of the process, for one thread on a machine that others use too",
    )
    parser.add_argument("--keep", action="store_true", help="append to results/step_time.jsonl")
    args = parser.parse_args()
    shape = f"h{args.hidden} l{args.layers} v{args.vocab}" if args.hidden else "embedded"
    shared = about(args.device)
    table = Table("space", "elements", "case", "median ms", "ratio to two forwards (median, min)")
    rows = []
    for space in args.space:
        cases, elements = cases_of(space, args)
        times = measure(cases, args.repeats, args.clock)
        bare = times["two forwards"]
        for name, taken in times.items():
            ratios = [a / b for a, b in zip(taken, bare, strict=True)]
            row = {
                "model": f"{shape}, batch {args.batch}x{args.length}",
                "space": space,
                "dtype": args.dtype,
                "elements": elements,
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
            print(json.dumps(row))
            table.add_row(
                space,
                f"{elements:,}",
                name,
                f"{row['value']:.1f}",
                f"{row['ratio_median']:.2f}, {row['ratio_of_minima']:.2f}",
            )
    Console(stderr=True).print(table)
    if args.keep:
        keep("step_time", rows)


if __name__ == "__main__":
    main()
