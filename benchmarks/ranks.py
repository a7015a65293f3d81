"""Two processes on two cores against one process on one: time of a step, bytes, and rejoining.

Probes are shared out: K pairs of forward passes over the same batch. The processes make blocks of
steps in turn, together and the first one alone (the other waits, and does not spin), so that a busy
machine slows both alike. What is sent is counted twice: the numbers that are given to the exchange,
and, of the same steps, what the loopback interface has carried, headers and all.

Rejoining is a process that was not there: it takes start and journal and goes on. The journal's
steps are real updates from losses that are made up, for a replay does not look at them; the
Trainer then resumes it, batches and all, without a forward pass.

    OMP_NUM_THREADS=1 python benchmarks/ranks.py --keep          # 100 M parameters, LoRA, K = 4
    OMP_NUM_THREADS=1 python benchmarks/ranks.py --hidden 128 --layers 2 --steps 50   # to try it
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rows import about, keep
from step_time import in_space, random_llama
from torch import Tensor
from two_processes import together

import zopeft
from zopeft.optim.executor import InProcess
from zopeft.ranks import Ranks
from zopeft.training import ZOTrainer, ZOTrainingArguments
from zopeft.training.grid import Grid
from zopeft.training.parallel import Parallel


def made(args: argparse.Namespace) -> tuple[Any, zopeft.MeZO, zopeft.BatchLoss]:
    """Returns model, method and the loss of a batch."""
    model = in_space("lora", random_llama((args.hidden, args.layers, args.vocabulary), "float32"))
    method = zopeft.MeZO(
        zopeft.discover(model), lr=1e-9, probes="separate", directions=args.directions
    )
    torch.manual_seed(1)
    ids = torch.randint(0, args.vocabulary, (args.batch, args.length))
    return model, method, zopeft.BatchLoss(model, {"input_ids": ids, "labels": ids})


class Everywhere:
    """Has no loss but this process's own: probes are shared out over one batch."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def carried() -> int:
    """Returns the bytes that the loopback interface has carried."""
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.partition(":")[2].split()[0])


def raced(args: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Makes blocks of steps, together and alone; returns times and bytes."""
    _, method, loss = made(args)
    alone = method.executor
    together = Parallel(method.engine, method.probing, ranks, Grid(1, ranks.count), Everywhere)
    probes, times, wire = method.forwards, {"one": [], "two": []}, 0
    for block in range(-1, args.blocks):
        for name, executor in (("two", together), ("one", alone)):
            method.executor = executor
            ranks.everyone(0)
            if name == "one" and not ranks.leads:
                continue
            before, on_wire = time.perf_counter(), carried()
            for _ in range(args.each):
                method.step(loss)
            if block >= 0:
                times[name].append((time.perf_counter() - before) / args.each)
                wire += (carried() - on_wire) if name == "two" else 0
        ranks.everyone(0)
    steps = args.each * (args.blocks + 1)
    # Whoever waits has no steps alone.
    ratios = [two / one for one, two in zip(times["one"], times["two"], strict=False)] or [0.0]
    return {
        "probes": probes,
        "trained": sum(method.blocks.numels),
        "step_one_s": statistics.median(times["one"] or [0.0]),
        "step_two_s": statistics.median(times["two"]),
        "ratio": statistics.median(ratios),
        "ratios": [round(r, 3) for r in ratios],
        "bytes_a_probe": (ranks.sent + ranks.received) / steps / probes,
        "wire_bytes_a_probe": wire / args.each / args.blocks / probes,
    }


class MadeUp(InProcess):
    """Losses that look like some, without a forward pass."""

    def losses(self, probes: Sequence[Any], closure: Any) -> tuple[Tensor, int]:
        """See `zopeft.optim.executor.Executor.losses`."""
        return 2.0 + 0.01 * torch.rand(len(probes)), 0


class Rows(torch.utils.data.Dataset):
    """Token ids by number."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.arange(index, index + self.args.length) % self.args.vocabulary
        return {"input_ids": ids, "labels": ids}


def trainer(args: argparse.Namespace, out: Path, made_up: bool) -> ZOTrainer:
    """Returns a trainer of the run that is rejoined."""
    model, _, _ = made(args)
    arguments = ZOTrainingArguments(
        output_dir=str(out),
        learning_rate=1e-9,
        directions=args.directions,
        parallel="probes",
        layout="padded",
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    found = ZOTrainer(model, arguments, train_dataset=Rows(args))
    if made_up:
        settled = found.on_settled

        def settle() -> None:
            settled()
            found.method.executor = MadeUp(found.method.engine, found.method.probing)

        found.on_settled = settle  # type: ignore[method-assign]
    return found


def rejoined(args: argparse.Namespace, step: float) -> dict[str, Any]:
    """Returns what rejoining a run of many steps takes, beside what its steps take."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "run")
        first = trainer(args, out, True)
        first.train()
        weights = {k: v.clone() for k, v in first.model.state_dict().items() if "lora" in k}
        journal = (out / "journal.bin").stat().st_size
        late = trainer(args, out, False)
        begun = time.perf_counter()
        late.train(resume_from_checkpoint=True)
        seconds = time.perf_counter() - begun
        own = late.model.state_dict()
        same = all(torch.equal(value, own[name]) for name, value in weights.items())
        passes = late.method.forward_passes
    return {
        "steps": args.steps,
        "rejoining_s": seconds,
        "steps_would_take_s": step * args.steps,
        "share": seconds / (step * args.steps),
        "same_bits": same,
        "forward_passes": passes,
        "journal_bytes_a_step": journal / args.steps,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=5, help="of steps, together and alone")
    parser.add_argument("--each", type=int, default=3, help="steps a block")
    parser.add_argument("--steps", type=int, default=2000, help="of the run that is rejoined")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = together(lambda ranks: raced(args, ranks))
    row |= {"rejoining": rejoined(args, row["step_two_s"])}
    shape = {name: getattr(args, name) for name in ("hidden", "layers", "batch", "length")}
    row = {"benchmark": "ranks", **shape, "directions": args.directions, **row, **about()}
    print(json.dumps(row))
    if args.keep:
        keep("ranks", [row])


if __name__ == "__main__":
    main()
