"""``zopeft estimate``: the memory that each way of training a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zopeft.errors import input_error

from . import options as o

if TYPE_CHECKING:
    from .output import Output

Length = Annotated[str | None, typer.Option("--length", metavar="N", help="Tokens of an example.")]
Memory = Annotated[
    float | None,
    typer.Option("--memory", metavar="GB", help="Memory to fit in; without it, the GPU's."),
]
_COLUMNS = {
    "weights": ("weights",),
    "training": ("adapter", "state"),
    "passes": ("scratch", "activations"),
    "total": ("total",),
}
"""Columns of the table, and which parts of a need each one adds up."""


def estimate(
    words: o.Words = None,
    lora: o.Lora = False,
    prefix: o.Prefix = False,
    peft: o.Peft = None,
    method: o.Method = None,
    load_in_8bit: o.In8bit = False,
    load_in_4bit: o.In4bit = False,
    batch_size: o.BatchSize = None,
    length: Length = None,
    dtype: o.Dtype = None,
    memory: Memory = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Estimate what inference, zeroth-order training and Adam need, without the weights.

    weights: parameters x bytes; in 4 bit half a byte and 4 bytes a block of 64.

    training: the adapter, Adam's gradient and moments; for zeroth-order a master and what
    --method keeps.

    passes: the peak of a step, rehearsed on tensors without values, and scratch.
    """
    from .output import output, rows_table

    model, overrides = o.split_words(words)
    flags: o.Flags = {
        **o.model_flags(model, dtype, load_in_8bit, load_in_4bit),
        **o.space(lora, prefix, False, peft),
        "method.name": ("--method", method),
        # A rate is asked for by methods that have no rule for one, and takes no memory.
        "method.lr": ("--lr", 1.0),
        "training.batch_size": ("--batch-size", batch_size),
        "task.max_length": ("--length", length),
    }
    if memory is not None and not memory > 0:
        raise input_error("--memory", "must be above 0", memory)
    with output(json, debug) as screen:
        from zopeft.recipe.load import load_recipe

        recipe = load_recipe("tune", None, overrides, flags)
        from zopeft.jobs.estimate import estimate as run

        found = run(recipe, memory)
        # Of a small model, gigabytes would all be 0.00.
        small = max(need["total"] for need in found["needs"]) < 1e8
        unit = ("MB", 1e6) if small else ("GB", 1e9)
        title = (
            f"{found['model']}, {found['dtype']}"
            + (f" ({found['bits']} bit)" if found["bits"] else "")
            + f", batch {found['batch_size']} x {found['length']} tokens, {unit[0]}"
        )
        rows = [
            (
                need["name"],
                *(
                    _size(sum(need[part] for part in parts) / unit[1])
                    for parts in _COLUMNS.values()
                ),
                need["fits"],
            )
            for need in found["needs"]
        ]
        room = found["memory_bytes"]
        fits = "fits" if room is None else f"fits {room / 1e9:.4g}"
        screen.result(found, rows_table(title, ("", *_COLUMNS, fits), rows))
        if not json:
            _notes(screen, found)
            for capacity, size in found["finetuner"].items():
                disk, used = (_mb(size[key]) for key in ("file_bytes", "memory_bytes"))
                screen.note(f"a fine-tuner ({capacity}): {disk} MB on disk, {used} MB in memory")


def _notes(screen: Output, found: Mapping[str, Any]) -> None:
    if found["memory_bytes"] is None:
        screen.note("no GPU found: --memory GB says whether it fits one")
        return
    device = found["device"] or "--memory"
    screen.note(f"{device}: {_gb(found['context_bytes'])} GB of it are taken to be the driver's")


def _size(amount: float) -> str:
    """Returns a number that is never 0.00 unless it is nothing."""
    return f"{amount:.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


def _mb(count: Any) -> str:
    return f"{count / 1e6:.1f}"


def _gb(count: Any) -> str:
    return f"{count / 1e9:.2f}"
