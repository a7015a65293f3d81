"""Time of generation, as a ratio to transformers' own in the same run.

Answers of an evaluation (sorted prompts, up to a line end) beside those that transformers generates
of batches of them; and the two probes of a metric over a LoRA, stacked and apart, beside two
``generate`` calls. All are asked in turn; what is timed is the processor's time.

    OMP_NUM_THREADS=1 python benchmarks/generation.py MODEL --data DIR --keep
    OMP_NUM_THREADS=1 python benchmarks/generation.py MODEL --data DIR --random --tokens 32 --keep
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import about, keep
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.models import attach
from zopeft.tasks import generation, load_rows, load_task
from zopeft.tasks.objectives.objective import MetricScore
from zopeft.tasks.objectives.prompted import PromptCollator, PromptDataset
from zopeft.tasks.objectives.scored import Generated, ScoreLoss

CLOCKS = {"process": time.process_time, "wall": time.perf_counter}


def libraries(function: Callable[[], Any]) -> Any:
    """Runs a function whose answers transformers generates."""
    own = generation.decodes
    generation.decodes = lambda *args: False
    try:
        return function()
    finally:
        generation.decodes = own


def measured(cases: dict[str, Callable[[], Any]], times: int, clock: Any) -> dict[str, float]:
    """Returns the least time of each case, asked in turn."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(times):
        for name, case in cases.items():
            start = clock()
            case()
            found[name].append(clock() - start)
    return {name: min(taken) for name, taken in found.items()}


def answers(model: Any, tokenizer: Any, data: Any, args: argparse.Namespace) -> dict[str, float]:
    """Times the answers of an evaluation; refuses to compare answers that differ."""
    prompts = sorted((data[n].ids for n in range(len(data))), key=len, reverse=True)
    own = generation.rows_together(model, len(prompts[0]) + args.tokens, args.batch_size)

    def run(size: int) -> list[str]:
        batches = [prompts[n : n + size] for n in range(0, len(prompts), size)]
        given = (args.tokens, "\n")
        found = [generation.generate(model, tokenizer, batch, *given) for batch in batches]
        return [answer for batch in found for answer in batch]

    def as_before() -> list[str]:
        return libraries(lambda: run(args.batch_size))

    ours, theirs = run(own), as_before()
    different = sum(a != b for a, b in zip(ours, theirs, strict=True))
    print(f"{different} of {len(ours)} answers differ; {own} rows together")
    cases = {"transformers": as_before, "zopeft": lambda: run(own)}
    return measured(cases, args.times, CLOCKS[args.clock])


def probes(model: Any, tokenizer: Any, data: Any, args: argparse.Namespace) -> dict[str, float]:
    """Times the two probes of a step over a LoRA, of as many new tokens each."""
    tuned = attach(model, "lora")
    rows = [data[n] for n in range(args.batch_size)]
    batch = PromptCollator(tokenizer)(rows)
    loss = ScoreLoss(tokenizer, MetricScore("f1"), Generated(args.tokens, None))
    blocks = zopeft.discover(tuned)
    ways = {way: zopeft.MeZO(blocks, lr=0.0, clip=0, probes=way) for way in ("stacked", "separate")}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    settings: dict[str, Any] = {
        "max_new_tokens": args.tokens,
        "do_sample": False,
        "pad_token_id": PromptCollator(tokenizer).pad,
    }

    def twice() -> None:
        with torch.no_grad():
            for _ in range(2):
                tuned.generate(**inputs, **settings)

    def step(method: Any) -> Callable[[], Any]:
        return lambda: method.step(zopeft.BatchLoss(tuned, batch, loss))

    float(loss(tuned, batch))
    cases: dict[str, Callable[[], Any]] = {"two generate": twice}
    cases |= {f"probes {way}": step(method) for way, method in ways.items()}
    return measured(cases, args.times, CLOCKS[args.clock])


def main(words: Sequence[str] | None = None) -> None:
    """Times, prints, and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder with squad")
    parser.add_argument("--label", default="")
    parser.add_argument("--random", action="store_true", help="the folder's shape, random weights")
    parser.add_argument("--cases", nargs="+", default=["answers", "probes"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args(words)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    torch.manual_seed(0)
    if args.random:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model))
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model)
    model = model.to(args.device).float().eval()
    task = load_task("squad")
    rows = load_rows(task, "validation", Path(args.data) / "squad", limit=args.rows)
    data = PromptDataset(task, rows, tokenizer, args.max_length, args.tokens)
    kept = []
    for name in args.cases:
        found = {"answers": answers, "probes": probes}[name](model, tokenizer, data, args)
        base = next(iter(found.values()))
        for case, seconds in found.items():
            row = {
                "model": args.label or Path(args.model).name,
                "random": args.random,
                "case": f"{name}: {case}",
                "value": round(seconds, 3),
                "unit": f"s, {args.clock} time, least of {args.times}",
                "ratio": round(seconds / base, 3),
                "rows": args.rows if name == "answers" else args.batch_size,
                "batch_size": args.batch_size,
                "new_tokens": args.tokens,
                "max_length": args.max_length,
            }
            kept.append({**row, **about(args.device)})
            print(row["case"], row["value"], row["ratio"])
    if args.keep:
        print(keep("generation", kept))


if __name__ == "__main__":
    main()
