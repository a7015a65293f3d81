"""Time and memory of one step on a GPU, against two bare forwards and a plain MeZO step.

The weights of a Llama shape are drawn on the device in bf16. A case is written
``space:noise`` with more arguments of `zopeft.MeZO` after it, as in
``full:binomial:probes=stacked``; one that the installed zopeft does not know is reported and
left out. Each case runs in turn with two bare forwards, timed by CUDA events; the peak is
that of the allocator during a step, beside its peak in one forward of the same batch.

    python benchmarks/gpu.py --shape 1b --keep
    python benchmarks/gpu.py --shape 8b --batch 1x256 16x256 --cases full:gaussian lora:binomial
    python benchmarks/gpu.py --device cpu --dtype float32 --layers 2 --hidden 64 --batch 1x16
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from plain_mezo import PlainMeZO
from rows import about, keep
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft

SHAPES = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied: Llama 3.2 and 3.1
    "1b": (2048, 8192, 16, 32, 8, 128256, True),
    "8b": (4096, 14336, 32, 32, 8, 128256, False),
}
NOISES = ("gaussian", "binomial", "rademacher")
CASES = [f"{space}:{noise}" for space in ("full", "lora") for noise in NOISES]


def build(args: argparse.Namespace) -> Any:
    """Returns a model of the given shape with random weights, drawn where they stay."""
    hidden, inner, layers, heads, groups, vocabulary, tied = SHAPES[args.shape]
    if args.hidden:
        hidden, inner, vocabulary = args.hidden, 4 * args.hidden, 1000
        heads = groups = max(1, args.hidden // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=args.layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
        max_position_embeddings=2048,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def options_of(words: list[str]) -> dict[str, Any]:
    """Returns ``name=value`` words as arguments; values are JSON where they can be."""
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def method_of(case: str, blocks: Any) -> Any:
    """Returns the optimizer of a case, or None with a note where zopeft does not know it."""
    _, noise, *more = case.split(":")
    try:
        return zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, noise=noise, **options_of(more))
    except (TypeError, ValueError, zopeft.errors.InputError) as error:
        print(f"left out {case}: {error}", file=sys.stderr)
        return None


def timed(call: Callable[[], Any], device: str) -> float:
    """Returns the milliseconds of a call."""
    if device == "cpu":
        begun = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begun)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last))


def peak_of(call: Callable[[], Any], device: str) -> int | None:
    """Returns the allocator's peak in bytes during a call; None on a CPU."""
    if device == "cpu":
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def measure(
    cases: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Times the cases in turn, after two warm rounds whose second gives the peaks."""
    for call in cases.values():
        call()
    peaks = {name: peak_of(call, args.device) for name, call in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.repeats):
        for name, call in cases.items():
            times[name].append(timed(call, args.device))
    return times, peaks


def rows_of(space: str, model: Any, size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each case of a space on one batch."""
    batch, length = (int(number) for number in size.split("x"))
    ids = torch.randint(0, model.config.vocab_size, (batch, length), device=args.device)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    @torch.no_grad()
    def forward() -> None:
        float(closure())

    @torch.no_grad()
    def two_forwards() -> None:
        float(closure() - closure())

    blocks = zopeft.discover(model)
    plain = PlainMeZO(model, 0.0, 1e-3)
    bare: dict[str, Callable[[], Any]] = {"forward": forward, "two forwards": two_forwards}
    times, peaks = measure({**bare, "plain MeZO": lambda: plain.step(closure)}, args)
    base = statistics.median(times["plain MeZO"])
    shared = {
        "model": f"{args.name}, batch {size}",
        "space": space,
        "dtype": args.dtype,
        "elements": sum(blocks.numels),
        "unit": "ms a step, median",
        "repeats": args.repeats,
    }
    rows = [row(name, times[name], times["two forwards"], base, peaks, "torch") for name in times]
    for case in args.cases:
        method = method_of(case, blocks) if case.split(":")[0] == space else None
        if method is None:
            continue
        # Each beside its own forwards: methods that share an adapter would move it in turn.
        times, peaks = measure({**bare, case: lambda method=method: method.step(closure)}, args)
        name = method.engine.kernels.name
        rows.append(row(case, times[case], times["two forwards"], base, peaks, name))
    return [{**shared, **one} for one in rows]


def row(
    case: str,
    taken: list[float],
    two: list[float],
    plain: float,
    peaks: dict[str, int | None],
    backend: str,
) -> dict[str, Any]:
    """Returns the numbers of a case: its time and peak, and their ratios."""
    median, peak, inference = statistics.median(taken), peaks[case], peaks["forward"]
    return {
        "case": case,
        "backend": backend,
        "value": round(median, 3),
        "ratio_to_two_forwards": round(
            statistics.median(a / b for a, b in zip(taken, two, strict=True)), 3
        ),
        "ratio_to_plain": round(median / plain, 3),
        "peak_bytes": peak,
        "peak_over_inference": round(peak / inference, 4) if peak and inference else None,
    }


def arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--hidden", type=int, default=0, help="another width, for a trial")
    parser.add_argument("--layers", type=int, default=0, help="another depth, for a trial")
    parser.add_argument("--batch", nargs="+", default=["16x256", "1x256"])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--keep", action="store_true", help="append to results/gpu.jsonl")
    args = parser.parse_args()
    trial = f" h{args.hidden or SHAPES[args.shape][0]} l{args.layers or SHAPES[args.shape][2]}"
    args.name = f"llama-{args.shape}" + (trial if args.hidden or args.layers else "")
    return args


def main() -> None:
    """Measures and prints."""
    args = arguments()
    shared = about(args.device)
    shared["versions"]["transformers"] = transformers.__version__
    rows = []
    for space in dict.fromkeys(case.split(":")[0] for case in args.cases):
        model = build(args)
        if space == "lora":
            config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            model = get_peft_model(model, config).eval()
        for size in args.batch:
            for row in rows_of(space, model, size, args):
                rows.append({**row, **shared})
                print(json.dumps(rows[-1]), flush=True)
        del model
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if args.keep:
        print(keep("gpu", rows), file=sys.stderr)


if __name__ == "__main__":
    main()
