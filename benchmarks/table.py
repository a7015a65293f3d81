"""Prints the kept results as tables: the newest row of each measurement.

python benchmarks/table.py            # all
python benchmarks/table.py step_time  # one benchmark
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rows import RESULTS

KEYS = {
    "batches": ("hardware", "threads", "model", "task", "loss", "space", "dtype", "build", "case"),
    "convergence": ("hardware", "model", "task", "part", "case", "steps", "lr", "seed"),
    "gpu": ("hardware", "model", "space", "dtype", "case"),
    "learning": ("hardware", "task", "space", "seed"),
    "low_rank": ("hardware", "threads", "model", "case"),
    "memory": ("hardware", "threads", "model", "space", "dtype", "case"),
    "meta_train": ("hardware", "threads", "model", "case"),
    "noise": ("hardware", "threads", "dtype", "backend", "noise", "kernel"),
    "stacked": ("hardware", "threads", "model", "space", "batch", "dtype", "case"),
    "step_time": ("hardware", "threads", "model", "space", "dtype", "case"),
}
VALUES = {
    "batches": ("value", "ratio", "tokens", "tokens_ratio", "clock", "commit"),
    "convergence": ("loss_before", "loss_after", "loss_of_run", "drift", "commit"),
    "gpu": (
        "elements",
        "value",
        "ratio_to_two_forwards",
        "ratio_to_plain",
        "peak_bytes",
        "peak_over_inference",
        "commit",
    ),
    "learning": ("metric", "before", "after", "lr", "steps", "batch", "commit"),
    "low_rank": ("value", "share", "gigabytes", "least", "least_share", "clock", "commit"),
    "memory": ("elements", "weights", "inference", "value", "allowed", "ratio", "commit"),
    "meta_train": ("value", "extra", "memory_ratio", "seconds_a_step", "time_ratio", "commit"),
    "noise": ("value", "copy", "clock", "commit"),
    "stacked": ("value", "ratio_median", "ratio_of_minima", "clock", "commit"),
    "step_time": (
        "elements",
        "blocks",
        "value",
        "ratio_median",
        "ratio_of_minima",
        "ratio_to_forwards",
        "clock",
        "commit",
    ),
}


def newest(benchmark: str) -> list[dict[str, Any]]:
    """Returns the last row kept of each measurement."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in (RESULTS / f"{benchmark}.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[tuple(row[key] for key in KEYS[benchmark])] = row
    return list(found.values())


def main() -> None:
    """Prints."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for benchmark in sys.argv[1:] or [
        name for name in KEYS if (RESULTS / f"{name}.jsonl").exists()
    ]:
        rows = newest(benchmark)
        columns = [key for key in KEYS[benchmark] if key != "hardware"]
        table = Table(*columns, *VALUES[benchmark])
        for row in rows:
            # Rows from before a column was there have none.
            numbers = [row.get(value, "") for value in VALUES[benchmark]]
            shown = [f"{n:.3g}" if isinstance(n, float) else f"{n}" for n in numbers]
            table.add_row(*(str(row[column]) for column in columns), *shown)
        table.title = f"{benchmark} ({rows[0]['unit']}; {rows[-1]['hardware']})"
        console.print(table)


if __name__ == "__main__":
    main()
