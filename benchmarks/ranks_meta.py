"""Meta-training by two processes on two cores against one on one: time of a meta-step, bytes.

The processes make meta-trainings in turn, together and the first one alone (the other waits, and
does not spin), so that a busy machine slows both alike. The batch is the same, and so is what is
learned; its distance from what one process learns is in the row. Gradients are sent whole, so what
is gained depends on tokens a row and rows a batch beside the size of what is trained.

    OMP_NUM_THREADS=1 python benchmarks/ranks_meta.py --keep     # full weights, 27 M parameters
    OMP_NUM_THREADS=1 python benchmarks/ranks_meta.py --hidden 64 --steps 8 --turns 1   # to try it
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from rows import about, keep
from step_time import in_space, random_llama
from two_processes import together

import zopeft
from zopeft.finetuner import FineTuner
from zopeft.meta.batches import TaskBatches
from zopeft.meta.parts import Parting, part_labels, part_loss
from zopeft.meta.settings import MetaSettings
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.summing import bytes_sent
from zopeft.ranks import ALONE, Ranks


def rows(args: argparse.Namespace) -> list[torch.Tensor]:
    """Returns token ids of as many rows as two batches have."""
    torch.manual_seed(1)
    return list(torch.randint(0, args.vocabulary, (2 * args.batch, args.length)))


def collate(examples: Any) -> dict[str, torch.Tensor]:
    """Makes a batch of rows, of which the second half is taught."""
    ids = torch.stack(list(examples))
    labels = ids.clone()
    labels[:, : ids.shape[1] // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def learned(args: argparse.Namespace, model: Any, ranks: Ranks) -> tuple[FineTuner, float]:
    """Learns a fine-tuner; returns it and the seconds of a meta-step, without the first two."""
    blocks = zopeft.discover(model)
    settings = MetaSettings.of(steps=args.steps, batch_size=args.batch, token_rows="none")
    settings = settings.decided(blocks.space)
    capacity = {"capacity": settings.capacity, "rank": settings.rank, "rows": settings.token_rows}
    finetuner = FineTuner.initial(blocks, **capacity)
    stream: Any = TaskBatches(
        {"random": rows(args)}, Parting(collate, ranks), args.batch, 0, torch.device("cpu")
    )
    trainer = SignalTrainer(
        model, stream, part_loss, part_labels, settings, blocks, finetuner, None, ranks
    )
    ticks: list[float] = []
    trainer.train(lambda *_: ticks.append(time.perf_counter()))
    return finetuner, (ticks[-1] - ticks[1]) / (len(ticks) - 2)


def raced(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Learns in turn, together and alone; returns times, bytes and the distance."""
    model = in_space(
        args.space, random_llama((args.hidden, args.layers, args.vocabulary), "float32")
    )
    times: dict[str, list[float]] = {"one": [], "two": []}
    found: dict[str, FineTuner] = {}
    sent = 0
    for turn in range(args.turns + 1):
        for name, own in (("two", ranks), ("one", ALONE)):
            ranks.everyone(0)
            if name == "one" and not ranks.leads:
                continue
            before = ranks.sent
            found[name], seconds = learned(args, model, own)
            sent = ranks.sent - before if name == "two" else sent
            if turn:
                times[name].append(seconds)
        ranks.everyone(0)
    # Whoever waits has no steps alone.
    ratios = [two / one for one, two in zip(times["one"], times["two"], strict=False)] or [0.0]
    blocks = zopeft.discover(model)
    apart = found["two"].distance(found["one"])["total"] if "one" in found else 0.0
    return {
        "trained": sum(blocks.numels),
        "step_one_s": statistics.median(times["one"] or [0.0]),
        "step_two_s": statistics.median(times["two"]),
        "ratio": statistics.median(ratios),
        "ratios": [round(r, 3) for r in ratios],
        "sent_bytes_a_step": sent / args.steps,
        "sent_bytes_a_pass": bytes_sent(blocks, ranks.count),
        "distance": apart,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--space", choices=("full", "lora"), default="full")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="meta-steps of a meta-training")
    parser.add_argument("--turns", type=int, default=5, help="meta-trainings, together and alone")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = together(lambda ranks: raced(args, ranks))
    shape = {name: getattr(args, name) for name in ("space", "hidden", "layers", "batch", "length")}
    row = {"benchmark": "ranks_meta", **shape, "steps": args.steps, **row, **about()}
    print(json.dumps(row))
    if args.keep:
        keep("ranks_meta", [row])


if __name__ == "__main__":
    main()
