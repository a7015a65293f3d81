"""Where a step on one short row of a 16-bit model spends its time on a CPU.

Of all matrices of a random Llama of the given shape: the products of two forward passes over one
row; the perturbed twins of both probes, or where directions are of low rank, which no twin is made
of, the thin products beside those of the weight; the update. Beside each part what its bytes take
at the rate of a copy, and what its random words take, drawn and thrown away: those of the noise,
once for both probes. What is left is arithmetic on the numbers: to fp32 and back, noise from words,
sums, rounding.

    OMP_NUM_THREADS=1 python benchmarks/short_rows.py --clock cpu
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from low_rank import matrices
from rich.console import Console
from rich.table import Table
from rows import about, keep
from step_time import CLOCKS, measure
from torch import nn

from zopeft.engine.side_path import add_product, sides_of
from zopeft.kernels import numba_kernels as compiled
from zopeft.kernels.choice import kernels_for
from zopeft.kernels.form import Form
from zopeft.noise import Noise

BYTES = 2
WORDS = {"gaussian": 1.0, "binomial": 1.0, "rademacher": 1 / 32, "low_rank": 0.0}
"""Random words a number of noise takes."""
PROBES = ("twins of two probes", "products beside the weight")
RANK = 4
"""That of directions of low rank."""


@numba.njit("u4(u8, i8)", nogil=True)
def draw(key: Any, counters: Any) -> Any:
    """Draws four words a counter, a tile at a time, and keeps none."""
    words = np.empty(1024, np.uint32)
    seen = np.uint32(0)
    for first in range(0, counters, 256):
        count = min(256, counters - first)
        compiled._words(key, np.uint64(5), np.uint64(1), first, count, words)
        seen ^= words[first & 1023]
    return seen


def parts(args: argparse.Namespace, family: str) -> dict[str, Callable[[], Any]]:
    """Returns the parts on matrices of the model's width, more than fit into the caches."""
    rows = columns = args.hidden
    many = max(2, args.spread // (rows * columns))
    dtype = torch.bfloat16
    layers = [nn.Linear(columns, rows, bias=False, dtype=dtype) for _ in range(many)]
    inputs = torch.randn(2 * args.tokens, columns).to(dtype)
    twin, other = (torch.empty(rows, columns, dtype=dtype) for _ in range(2))
    thin = family == "low_rank"
    kernels = kernels_for("auto", Noise("gaussian" if thin else family), [twin.device])
    factors = torch.randn(rows, RANK), torch.randn(RANK, columns)
    sides = sides_of(layers[0], factors, dtype)
    output = torch.zeros(2 * args.tokens, rows, dtype=dtype)
    turn = {"at": 0}

    def weight() -> Any:
        turn["at"] = (turn["at"] + 1) % many
        return layers[turn["at"]].weight.detach()

    def shift() -> None:
        both = twin.view(-1), other.view(-1)
        kernels.shift_both(1, 2, 0, weight().view(-1), 1e-3, None, *both)

    def beside() -> None:
        add_product(kernels, output, inputs, sides, [1e-3, -1e-3])

    def update() -> None:
        if thin:
            kernels.update_matrix(1, 2, weight(), 1e-9, 1.0, Form(None, factors), False)
        else:
            kernels.update(1, 2, weight().view(-1), 1e-9, 1.0, None, False)

    return {
        "products": lambda: nn.functional.linear(inputs[: args.tokens], weight()),
        "probe": beside if thin else shift,
        "update": update,
        "copy": lambda: twin.copy_(weight()),
        "words": lambda: draw(np.uint64(1), rows * columns // 4),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=128, help="of the row")
    parser.add_argument("--spread", type=int, default=1 << 26, help="elements to go round in")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--keep", action="store_true", help="append to results/short_rows.jsonl")
    args = parser.parse_args()
    numbers = sum(rows * columns * count for rows, columns, count in matrices(args))
    table = Table("part of a step", "ms", "of two forwards", "its bytes", "its words")
    shared, kept = about(), []
    for family, words in WORDS.items():
        with torch.no_grad():
            taken = measure(parts(args, family), args.repeats, args.clock)
        each = {part: min(times) / args.hidden**2 for part, times in taken.items()}
        forwards = 2 * numbers * each["products"]
        own = {
            "products, twice": (2, each["products"], 0.0),
            PROBES[family == "low_rank"]: (1, each["probe"], words),
            "update": (1, each["update"], words),
        }
        for part, (times, seconds, drawn) in own.items():
            copies = 1 if part == "update" else 2
            row = {
                "model": f"h{args.hidden} l{args.layers} v{args.vocab}, 1x{args.tokens}, bfloat16",
                "numbers": numbers,
                "noise": family,
                "case": part,
                "value": round(1e3 * times * numbers * seconds, 1),
                "unit": "ms a step, least",
                "share": round(times * numbers * seconds / forwards, 3),
                "bytes_share": round(copies * numbers * each["copy"] / forwards, 3),
                "words_share": round(times * numbers * drawn * each["words"] / forwards, 3),
                "clock": args.clock,
                **shared,
            }
            kept.append(row)
            print(json.dumps(row))
            keys = ("value", "share", "bytes_share", "words_share")
            table.add_row(f"{part}, {family}", *(str(row[key]) for key in keys))
    Console(stderr=True).print(table)
    if args.keep:
        keep("short_rows", kept)


if __name__ == "__main__":
    main()
