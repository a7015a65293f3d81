"""What the parts of a low-rank step take, beside what their bytes and operations must take.

Of all matrices of a random Llama of the given shape: the products of two forward passes,
which a bare pass has too; the product of factors beside them or in twins, twice; and the
update. The least time of a part is that of its bytes at the rate of a copy of as many. All
parts are timed one after the other, matrix by matrix, and the least time of each counts.

    OMP_NUM_THREADS=1 python benchmarks/low_rank.py --clock cpu
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rows import about, keep
from step_time import CLOCKS, measure
from torch import nn

from zopeft.engine.side_path import add_product, sides_of
from zopeft.kernels.choice import kernels_for
from zopeft.kernels.form import Form
from zopeft.noise import Noise

FLOAT = 4
PARTS = ("forward", "beside", "twin", "update", "update, measured")


def matrices(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Returns rows, columns and number of each kind of matrix that a pass multiplies with."""
    hidden, wide = args.hidden, args.hidden * 8 // 3
    return [
        (hidden, hidden, 4 * args.layers),
        (wide, hidden, 2 * args.layers),
        (hidden, wide, args.layers),
        (args.vocab, hidden, 1),
    ]


def gigabytes(args: argparse.Namespace) -> dict[str, float]:
    """Returns what each part of a step reads and writes at least."""
    found = matrices(args)
    weights = FLOAT * sum(o * i * count for o, i, count in found)
    inputs, outputs = (
        FLOAT * args.tokens * sum(matrix[side] * matrix[2] for matrix in found) for side in (1, 0)
    )
    each = {
        "forward": 2 * (weights + inputs + outputs),
        "beside": 2 * (inputs + 2 * outputs),
        "twin": 2 * 2 * weights,
        "update": 2 * weights,
        "update, measured": 2 * weights,
    }
    return {part: size / 1e9 for part, size in each.items()}


def parts(rows: int, columns: int, args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Returns the parts on several matrices of a size, more than fit into the caches."""
    many = max(2, args.spread // (rows * columns))
    layers = [nn.Linear(columns, rows, bias=False).requires_grad_(False) for _ in range(many)]
    inputs, twin = torch.randn(args.tokens, columns), torch.empty(rows, columns)
    output = torch.randn(args.tokens, rows)
    factors = (torch.randn(rows, args.rank), torch.randn(args.rank, columns))
    form, kernels = Form(None, factors), kernels_for("auto", Noise("gaussian"), [twin.device])
    every = slice(0, rows)
    turn = {"at": 0}

    def weight() -> Any:
        turn["at"] = (turn["at"] + 1) % many
        return layers[turn["at"]].weight

    @torch.no_grad()
    def beside() -> None:
        sides = sides_of(layers[0], factors, inputs.dtype)
        add_product(kernels, output, inputs, sides, [1e-9])

    return {
        "forward": lambda: nn.functional.linear(inputs, weight()),
        "beside": beside,
        "twin": lambda: kernels.shift_matrix(1, 2, weight(), every, 1e-3, form, twin),
        "update": lambda: kernels.update_matrix(1, 2, weight(), 1e-9, 1.0, form, False),
        "update, measured": lambda: kernels.update_matrix(1, 2, weight(), 1e-9, 1.0, form),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=1024, help="of a batch")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--spread", type=int, default=1 << 25, help="elements to go round in")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--keep", action="store_true", help="append to results/low_rank.jsonl")
    args = parser.parse_args()
    source = torch.randn(args.spread)
    target = torch.empty_like(source)
    copied = min(measure({"copy": lambda: target.copy_(source)}, 15, args.clock)["copy"])
    rate = 2 * FLOAT * args.spread / copied / 1e9
    seconds, operations = dict.fromkeys(PARTS, 0.0), 0
    for rows, columns, count in matrices(args):
        for part, taken in measure(parts(rows, columns, args), args.repeats, args.clock).items():
            seconds[part] += count * (1 if "update" in part else 2) * min(taken)
        operations += 4 * args.tokens * rows * columns * count
    print(f"copy {rate:.1f} GB/s, forward {operations / seconds['forward'] / 1e9:.1f} GFLOP/s")
    shared, kept = about(), []
    table = Table("part of a step", "ms", "share of two forwards", "GB", "least ms", "least share")
    for part, size in gigabytes(args).items():
        row = {
            "model": f"h{args.hidden} l{args.layers} v{args.vocab}, {args.tokens} tokens",
            "case": part,
            "value": round(1e3 * seconds[part], 1),
            "unit": "ms a step, least",
            "share": round(seconds[part] / seconds["forward"], 4),
            "gigabytes": round(size, 3),
            "least": round(1e3 * size / rate, 1),
            "least_share": round(size / rate / seconds["forward"], 4),
            "copy_gigabytes_a_second": round(rate, 1),
            "gigaflops": round(operations / seconds["forward"] / 1e9, 1),
            "clock": args.clock,
            **shared,
        }
        kept.append(row)
        print(json.dumps(row))
        keys = ("case", "value", "share", "gigabytes", "least", "least_share")
        table.add_row(*(str(row[key]) for key in keys))
    Console(stderr=True).print(table)
    if args.keep:
        keep("low_rank", kept)


if __name__ == "__main__":
    main()
