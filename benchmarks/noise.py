"""Time of each kernel an element, beside a plain copy of the same tensor.

OMP_NUM_THREADS=1 python benchmarks/noise.py --keep
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from rows import about, keep

from zopeft.kernels import BACKENDS
from zopeft.noise import FAMILIES, Noise

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def nanoseconds(call: Callable[[], Any], count: int, repeats: int, clock: str) -> float:
    """Returns the least time of several calls, in nanoseconds an element."""
    now, least = CLOCKS[clock], float("inf")
    call()
    for _ in range(repeats):
        begun = now()
        call()
        least = min(least, now() - begun)
    return 1e9 * least / count


def cases(backend: str, family: str, weight: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Returns the kernels' calls on one weight tensor."""
    kernels = BACKENDS[backend](Noise(family))
    out = torch.empty_like(weight)
    piece = 1 << 21
    scratch = out[:piece]

    def into_scratch() -> None:
        for start in range(0, weight.numel(), piece):
            kernels.shift(3, 7, start, weight[start : start + piece], 1e-3, None, scratch)

    return {
        "shift": lambda: kernels.shift(3, 7, 0, weight, 1e-3, None, out),
        "shift into a scratch": into_scratch,
        "update": lambda: kernels.update(3, 7, weight, 1e-9, 1.0, None),
        "statistics": lambda: kernels.statistics(weight),
    }


def main() -> None:
    """Measures and prints one JSON row a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--backends", nargs="+", default=["numba", "plain"])
    parser.add_argument("--keep", action="store_true", help="append to results/noise.jsonl")
    args = parser.parse_args()
    shared, rows = about(), []
    for dtype in args.dtypes:
        for backend in args.backends:
            # The plain version takes seconds for what the others do in milliseconds.
            count = args.elements if backend != "plain" else args.elements // 16
            repeats = args.repeats if backend != "plain" else 2
            weight = torch.randn(count).to(getattr(torch, dtype))
            other = torch.empty_like(weight)
            for family in sorted(FAMILIES):
                copy = nanoseconds(lambda: other.copy_(weight), count, 7, args.clock)  # noqa: B023
                for name, call in cases(backend, family, weight).items():
                    taken = nanoseconds(call, count, repeats, args.clock)
                    rows.append(
                        {
                            "kernel": name,
                            "backend": backend,
                            "noise": family,
                            "dtype": dtype,
                            "elements": count,
                            "value": round(taken, 3),
                            "unit": "ns/element, least of repeats",
                            "clock": args.clock,
                            "copy": round(copy, 3),
                            **shared,
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
    if args.keep:
        keep("noise", rows)


if __name__ == "__main__":
    main()
