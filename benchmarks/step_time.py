"""Time of one zeroth-order step as a ratio to two bare forward passes of the same batch.

Compares, in one run and interleaved, the steps of zopeft's methods with two bare forwards
and with MeZO as it is usually written: in place, torch.normal, four passes over the
weights. Prints one JSON row a measurement and a table.

    python benchmarks/step_time.py                       # the embedded model, LoRA and full
    python benchmarks/step_time.py --hidden 768 --layers 12 --length 128 --space full --keep
    python benchmarks/step_time.py --sweep parameters    # 1 M to 30 M of them in 4 layers
    python benchmarks/step_time.py --sweep blocks        # 12 to 579 of them, the same parameters
    python benchmarks/step_time.py --directions 2 4 8    # K of them a step, K + 1 forward passes
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from plain_mezo import PlainMeZO
from rich.console import Console
from rich.table import Table
from rows import about, keep
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zopeft

Shape = tuple[int, int, int]
"""Hidden size, layers and vocabulary; a hidden size of 0 is the embedded model."""
SWEEPS: dict[str, list[Shape]] = {
    "parameters": [(128, 4, 2000), (256, 4, 2000), (512, 4, 2000), (704, 4, 2000)],
    "blocks": [(1024, 1, 500), (512, 4, 500), (256, 16, 500), (128, 64, 500)],
}


def build(shape: Shape, dtype: str) -> Any:
    """Returns the embedded model, or a random one of the given shape."""
    if shape[0]:
        return random_llama(shape, dtype)
    from zopeft.embedded import MODEL_DIR

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=getattr(torch, dtype)).eval()


def random_llama(shape: Shape, dtype: str) -> Any:
    """Returns a Llama of the given shape, its weights drawn in its own dtype."""
    hidden, layers, vocabulary = shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        dtype=dtype,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def in_space(space: str, model: Any) -> Any:
    """Returns the model with a LoRA on its query and value projections, or as it is."""
    if space != "lora":
        return model
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, config).eval()


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


def cases_of(
    space: str, shape: Shape, batch: int, args: argparse.Namespace
) -> tuple[dict[str, Callable[[], Any]], zopeft.Blocks]:
    """Returns the measured cases of a space, two bare forwards first, and the blocks."""
    model = in_space(space, build(shape, args.dtype)).to(args.device)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (batch, args.length), device=args.device)

    def closure() -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
        return loss

    @torch.no_grad()
    def bare() -> None:
        float(closure() - closure())

    blocks = zopeft.discover(model)

    def learned() -> zopeft.ZOFineTuner:
        return zopeft.ZOFineTuner(blocks, zopeft.FineTuner.initial(blocks), lr=1e-9, eps=1e-3)

    makers: dict[str, Callable[[], Any]] = {"plain MeZO": lambda: PlainMeZO(model, 0.0, 1e-3)}
    for noise in args.noise:
        makers[f"zopeft MeZO, {noise}"] = lambda noise=noise: zopeft.MeZO(
            blocks, lr=1e-9, eps=1e-3, noise=noise
        )
        for count in args.directions:
            makers[f"zopeft MeZO, {noise}, {count} one-sided"] = lambda n=noise, k=count: (
                zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, noise=n, directions=k, sides="one")
            )
    makers["zopeft ZOFineTuner, gaussian"] = learned
    cases: dict[str, Callable[[], Any]] = {"two forwards": bare}
    for name, make in makers.items():
        if any(word in name for word in args.only):
            cases[name] = lambda step=make().step: step(closure)
    return cases, blocks


def rows_of(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures shape by shape, space by space and batch by batch; yields a row a case."""
    shared = about(args.device)
    for shape in SWEEPS[args.sweep] if args.sweep else [(args.hidden, args.layers, args.vocab)]:
        name_of_shape = "h{} l{} v{}".format(*shape) if shape[0] else "embedded"
        for space in args.space:
            for batch in args.batch:
                cases, blocks = cases_of(space, shape, batch, args)
                # One-sided probes of K directions take K + 1 forward passes.
                passes = {f", {k} one-sided": k + 1 for k in args.directions}
                times = measure(cases, args.repeats, args.clock)
                bare = times["two forwards"]
                for name, taken in times.items():
                    ratios = [a / b for a, b in zip(taken, bare, strict=True)]
                    forwards = next((n for end, n in passes.items() if name.endswith(end)), 2)
                    yield {
                        "model": f"{name_of_shape}, batch {batch}x{args.length}",
                        "space": space,
                        "dtype": args.dtype,
                        "elements": sum(blocks.numels),
                        "blocks": len(blocks),
                        "case": name,
                        "value": round(1e3 * statistics.median(taken), 2),
                        "unit": "ms a step, median",
                        "ratio_median": round(statistics.median(ratios), 3),
                        "ratio_of_minima": round(min(taken) / min(bare), 3),
                        "forwards": forwards,
                        "ratio_to_forwards": round(2 * statistics.median(ratios) / forwards, 3),
                        "repeats": args.repeats,
                        "clock": args.clock,
                        **shared,
                    }


def add_shape(parser: argparse.ArgumentParser, hidden: int = 0) -> None:
    """Adds the flags of a random model's shape."""
    parser.add_argument("--hidden", type=int, default=hidden, help="0: the embedded model")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=96, help="tokens a row")
    parser.add_argument("--dtype", default="float32")


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shape(parser)
    parser.add_argument("--sweep", choices=list(SWEEPS), help="some shapes instead of one")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--space", nargs="+", default=["lora", "full"])
    parser.add_argument("--noise", nargs="+", default=["gaussian", "binomial", "rademacher"])
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="the cases whose name has a WORD"
    )
    parser.add_argument(
        "--directions", type=int, nargs="+", default=[], help="also steps of so many directions"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: time of the process, for one thread on a machine that others use too",
    )
    parser.add_argument("--keep", action="store_true", help="append to results/step_time.jsonl")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    args = arguments()
    columns = ("model", "space", "elements", "blocks", "case")
    table = Table(*columns, "median ms", "ratio to two forwards (median, min)", "to its own")
    rows = []
    for row in rows_of(args):
        rows.append(row)
        print(json.dumps(row), flush=True)
        ratio = f"{row['ratio_median']:.2f}, {row['ratio_of_minima']:.2f}"
        own = f"{row['ratio_to_forwards']:.2f}"
        table.add_row(*(str(row[column]) for column in columns), f"{row['value']:.1f}", ratio, own)
    Console(stderr=True).print(table)
    if args.keep:
        keep("step_time", rows)


if __name__ == "__main__":
    main()
