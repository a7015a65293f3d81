"""What 8 to 512 ranks would come to at 8B and 70B: traffic, memory and time, put together on paper.

Three kinds of numbers go in, and the table says which is which:

* counted: the bytes of a step, by the sizes that the exchange itself has (4 bytes a loss);
* measured here: the processor time that an exchange of losses costs the first rank for each other
  one (of this machine, by gloo);
* assumed: what a rank computes in a second (FLOPS), its memory's bandwidth, and how long a message
  takes between machines. They are arguments: put in your own.

Memory is zopeft's own estimate of a LoRA step (`zopeft estimate`). No run of these sizes has been
made.

    python benchmarks/scaling.py --keep                # the rows, and the tables of the guide
    python benchmarks/scaling.py --flops 1e14 --latency 1e-4
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rows import about, keep

from zopeft.jobs.memory import estimate
from zopeft.ranks import begin
from zopeft.training.grid import grid_of

RANKS = (8, 32, 128, 512)
SHAPES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Those of Llama 3.1."""


def exchange_time(count: int, numbers: int, times: int = 500) -> float:
    """Measures what exchanges of losses between forks of this process cost the first of them.

    Args:
        count: Processes.
        numbers: Losses.
        times: Exchanges.

    Returns:
        Processor seconds of the first one an exchange, those of gloo's threads among them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {k: str(v) for k, v in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
        ranks, said = begin(), torch.zeros(numbers)
        ranks.everyone(0)
        before = time.process_time()
        for _ in range(times):
            found = ranks.gathered(said)
            ranks.spread(said if found is None else found.mean(0))
        if not rank:
            os.write(writing, f"{(time.process_time() - before) / times}".encode())
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    return float(os.read(reading, 64))


def shape_of(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Returns parameters, trained numbers and memory of a LoRA step on a model's shape."""
    with tempfile.TemporaryDirectory() as place:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
                  "dtype": "bfloat16", "max_position_embeddings": 8192, **SHAPES[name]}  # fmt: skip
        Path(place, "config.json").write_text(json.dumps(config))
        needs = estimate(place, "lora", {"r": 16}, args.batch, args.length, torch.bfloat16)
        need = next(n for n in needs if "zeroth" in n.name.lower() and "full" not in n.name.lower())
    own = SHAPES[name]
    head = own["hidden_size"] // own["num_attention_heads"]
    wide = own["hidden_size"] + own["num_attention_heads"] * head
    narrow = own["hidden_size"] + own["num_key_value_heads"] * head
    return {
        "memory": need.total,
        "weights": need.weights,
        # LoRA's usual layers: queries and values.
        "trained": own["num_hidden_layers"] * 16 * (wide + narrow),
    }


def row_of(name: str, shape: dict[str, Any], count: int, parts: dict[str, float], args: Any) -> Any:
    """Returns what a step comes to for a model and a number of ranks."""
    probes = 2 * args.directions
    grid = grid_of("both", count, probes)
    each = math.ceil(probes / grid.columns)
    tokens = args.batch * args.length
    parameters = shape["weights"] / 2
    forward = 2 * parameters * tokens / args.flops
    update = args.directions * shape["trained"] * parts["bytes"] / args.bandwidth
    # The first one takes in a message of each; what it says goes down a tree.
    exchange = (count - 1) * parts["message"] + math.ceil(math.log2(count)) * args.latency
    step = each * forward + update + exchange
    alone = grid.rows * probes * forward + update
    return {
        "model": name, "ranks": count, "rows": grid.rows, "columns": grid.columns,
        "examples": grid.rows * args.batch, "probes": probes,
        "sent_bytes": 4 * (each + 1), "received_bytes": 4 * (probes + 1),
        "first_receives_bytes": 4 * (count - 1) * (each + 1),
        "gradients_would_be_bytes": 2 * 4 * shape["trained"],
        "memory_bytes": shape["memory"],
        "forward_s": forward, "update_s": update, "exchange_s": exchange, "step_s": step,
        "efficiency": alone / count / step,
    }  # fmt: skip


def table(rows: list[Any]) -> str:
    """Returns rows as a table for the guide."""
    lines = [
        "| model | ranks | batches x probes' parts | a rank sends / receives | the first receives "
        "| memory a rank | forward passes | exchange | step | of ideal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        passes = math.ceil(one["probes"] / one["columns"])
        lines.append(
            f"| {one['model']} | {one['ranks']} | {one['rows']} x {one['columns']} "
            f"| {one['sent_bytes']} / {one['received_bytes']} B "
            f"| {one['first_receives_bytes'] / 1e3:.1f} kB | {one['memory_bytes'] / 1e9:.0f} GB "
            f"| {passes} x {one['forward_s'] * 1e3:.0f} ms | {one['exchange_s'] * 1e3:.1f} ms "
            f"| {one['step_s'] * 1e3:.0f} ms | {one['efficiency']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints rows and tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--flops", type=float, default=4e14, help="assumed, of a rank")
    parser.add_argument("--bandwidth", type=float, default=2e12, help="assumed, bytes a second")
    parser.add_argument("--latency", type=float, default=5e-5, help="assumed, of a message")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = {n: exchange_time(n, 2 * args.directions + 1) for n in (2, 4, 8)}
    # What one process more adds.
    message = max(0.0, (measured[8] - measured[2]) / 6)
    parts = {"message": message, "bytes": 12.0}
    facts = {"exchange_cpu_s": measured, "message_cpu_s": message}
    rows = []
    for name in SHAPES:
        shape = shape_of(name, args)
        rows += [row_of(name, shape, count, parts, args) for count in RANKS]
    given = {k: v for k, v in vars(args).items() if k != "keep"}
    rows = [{"benchmark": "scaling", **row, **given, "measured": facts, **about()} for row in rows]
    for row in rows:
        print(json.dumps(row))
    print(table(rows))
    if args.keep:
        keep("scaling", rows)


if __name__ == "__main__":
    main()
