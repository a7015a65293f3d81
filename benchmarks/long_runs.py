"""A run of 200,000 steps that is killed and gone on with: memory, open files, and the way back.

A process makes the steps of ``zopeft tune`` on a model of one layer (so that what stands around
the forward passes weighs as much as it ever can), is killed, and another goes on. What going on
costs is the time to its first new step less the time to the first step of the run itself, both as
processor time, which does not depend on what else the machine does.

    python benchmarks/long_runs.py --steps 20000 --keep
    python benchmarks/long_runs.py --bare --steps 200000 --keep

``--bare`` makes the steps by a method and a journal alone, of a loss that costs nothing, and
replays all of them into other weights.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import about, keep

MORE = 10
"""Steps that are made after the run has been gone on with."""


def make(folder: Path) -> None:
    """Writes a model of one layer and some rows."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from zopeft.embedded import MODEL_DIR

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"text": f"it was {word}", "label": n % 2} for n, word in enumerate("abcdefgh")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def memory() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def child(folder: Path, steps: int, resume: bool) -> None:
    """Makes the steps and is killed after them, or goes on with them."""
    from zopeft.jobs.tune import tune
    from zopeft.optim.zeroth_order import ZerothOrder
    from zopeft.recipe.load import load_recipe

    begun, told = time.process_time(), {"samples": [], "recalled": 0}
    recall = ZerothOrder.recall

    def counted(self: Any, record: Any) -> Any:
        told["recalled"] += 1
        return recall(self, record)

    ZerothOrder.recall = counted
    marks = {max(1, steps // 20), steps // 4, steps // 2, 3 * steps // 4, steps}

    def watch(progress: Any) -> None:
        if progress.stage != "tune" or not progress.step:
            return
        now = time.process_time() - begun
        told.setdefault("first", now)
        if progress.step in marks:
            files = len(os.listdir("/proc/self/fd"))
            told["samples"].append({"step": progress.step, "memory": memory(), "files": files})
        if progress.step == steps + 1:
            told["new"] = now
        if progress.step == steps and not resume:
            told["all"] = now
            (folder / "told.json").write_text(json.dumps(told))
            os.kill(os.getpid(), signal.SIGKILL)

    flags = {
        "model.name": ("MODEL", str(folder / "model")),
        "task.data": ("--data", str(folder / "rows.jsonl")),
        "training.steps": ("--steps", steps + MORE),
        "training.batch_size": ("--batch-size", 2),
        "training.eval_before": ("eval", False),
        "method.lr": ("--lr", 1e-5),
        "peft.name": ("--lora", "lora"),
    }
    recipe = load_recipe("tune", None, [], flags, None)
    tune(recipe, str(folder / "out"), resume=resume, listener=watch)
    told["peak"] = memory()
    (folder / "told.json").write_text(json.dumps(told))


def bare(steps: int) -> dict[str, Any]:
    """Makes and replays a journal without a trainer; returns the row."""
    import torch

    import zopeft
    from zopeft.journal import Journal, header_of, rebuild

    class Bowl(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 64).view(8, 8))

        def loss(self) -> torch.Tensor:
            return (self.weight**2).sum()

    def method() -> tuple[Any, Any]:
        model = Bowl()
        return model, zopeft.MeZO(zopeft.discover(model), lr=1e-5, eps=1e-3, seed=1)

    with tempfile.TemporaryDirectory() as place:
        model, steady = method()
        samples, begun = [], time.monotonic()
        with Journal.create(Path(place, "journal.bin"), header_of(steady)) as journal:
            for step in range(1, steps + 1):
                steady.step(model.loss)
                journal.append(steady.last_record)
                if step % (steps // 4) == 0 or step == steps // 20:
                    files = len(os.listdir("/proc/self/fd"))
                    samples.append({"step": step, "memory": memory(), "files": files})
        seconds = time.monotonic() - begun
        size = Path(place, "journal.bin").stat().st_size
        begun = time.monotonic()
        journal = Journal.open(Path(place, "journal.bin"))
        opened = time.monotonic() - begun
        begun = time.monotonic()
        last = sum(1 for _ in journal.records(steps - steps // 64))
        tail = time.monotonic() - begun
        again, other = method()
        begun = time.monotonic()
        rebuild(journal, other)
        replayed = time.monotonic() - begun
        return {
            "bare": True,
            "steps": steps,
            "seconds": round(seconds, 2),
            "open_seconds": round(opened, 2),
            "last_64th_seconds": round(tail, 3),
            "last_64th_records": last,
            "replay_seconds": round(replayed, 2),
            "same_bits": bool(torch.equal(model.weight, again.weight)),
            "samples": samples,
            "memory_after_replay": memory(),
            "journal_bytes": size,
            **about(),
        }


def run(steps: int) -> dict[str, Any]:
    """Makes a run, kills it, goes on with it; returns the row."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder)
        found = []
        for resume in (False, True):
            words = [sys.executable, __file__, "--child", place, "--steps", str(steps)]
            subprocess.run([*words, *(["--resume"] if resume else [])], check=resume)
            found.append(json.loads((folder / "told.json").read_text()))
        first, again = found
        seconds, back = first["all"] - first["first"], again["new"] - first["first"]
        return {
            "steps": steps,
            "seconds": round(seconds, 2),
            "resume_seconds": round(back, 2),
            "resume_share": round(back / seconds, 5),
            "steps_made_again": again["recalled"],
            "samples": first["samples"],
            "journal_bytes": (folder / "out" / "journal.bin").stat().st_size,
            "memory_after_resume": again["peak"],
            **about(),
        }


def main() -> None:
    """Measures, prints and keeps a row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--bare", action="store_true", help="a method and a journal alone")
    parser.add_argument("--keep", action="store_true", help="append the row to results/")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.steps, given.resume)
        return
    row = (bare if given.bare else run)(given.steps)
    print(json.dumps(row))
    if given.keep:
        keep("long_runs", [row])


if __name__ == "__main__":
    main()
