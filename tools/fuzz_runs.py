"""What runs leave: journals, records, rows, claims, checkpoints."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fuzz_damage import (
    bytes_damaged,
    framed,
    json_damaged,
    lines_damaged,
    pickle_damaged,
    tensors_damaged,
)
from fuzz_models import fresh, model, read_from
from fuzz_reader import Reader

import zopeft


@cache
def journal() -> dict[str, bytes]:
    """A journal with records of every kind."""
    from zopeft.journal import Journal
    from zopeft.journal.header import header_of
    from zopeft.optim.record import StepRecord

    method = zopeft.MeZO(zopeft.discover(fresh()), lr=1e-3, seed=3)
    with tempfile.TemporaryDirectory() as place:
        with Journal.create(Path(place) / "journal.bin", header_of(method)) as found:
            for step in range(12):
                more: dict[str, Any] = {}
                if step % 3 == 1:
                    more = {"scales": np.linspace(0, 1, 9, dtype=np.float32), "centre": 2.0}
                if step % 3 == 2:
                    more = {"asked": (3.0, 1.0, 2.0, 4.0), "first": 1}
                    more["notes"] = {"basis": np.ones((2, 3), dtype=np.float32)}
                found.append(
                    StepRecord(step, 7 + step, (1.0, 2.0), (0.5,), (1e-3,), 1e-3, 0.0, **more)
                )
        return read_from(Path(place))


def read_journal(path: Path) -> None:
    """Reads every record."""
    from zopeft.journal import Journal

    list(Journal.open(path).records())


def replay_journal(path: Path) -> None:
    """Opens a journal and replays it."""
    from zopeft.journal import rebuild

    rebuild(path, zopeft.MeZO(zopeft.discover(fresh()), lr=rate_of(path.name), seed=3))


def rate_of(name: str) -> Any:
    """Returns the learning rate of the run with a journal of that name."""
    return "auto" if name == "auto.bin" else 1e-3


@cache
def played() -> dict[str, bytes]:
    """The journals of short runs."""
    return {name: _played(name) for name in ("journal.bin", "auto.bin")}


def _played(name: str) -> bytes:
    from zopeft.journal import Journal
    from zopeft.journal.header import header_of

    model = fresh()
    method = zopeft.MeZO(zopeft.discover(model), lr=rate_of(name), seed=3)
    ids = torch.arange(12).view(2, 6)
    loss = zopeft.BatchLoss(model, {"input_ids": ids, "labels": ids})
    if method.auto:
        method.settle(loss)
    with tempfile.TemporaryDirectory() as place:
        with Journal.create(Path(place) / name, header_of(method)) as found:
            for _ in range(6):
                method.step(loss)
                found.append(method.last_record)
        return (Path(place) / name).read_bytes()


@cache
def start() -> dict[str, bytes]:
    """The weights that an adapter's run started from."""
    from zopeft.journal.start import save_start

    with tempfile.TemporaryDirectory() as place:
        save_start(zopeft.discover(fresh()), Path(place) / "start.safetensors")
        return read_from(Path(place))


def read_start(path: Path) -> None:
    """Gives a model the weights that a run started from."""
    from zopeft.journal.start import load_start

    load_start(zopeft.discover(fresh()), path)


@cache
def run_folder() -> dict[str, bytes]:
    """What a run leaves beside its weights."""
    record = {"status": "interrupted", "job": "tune", "recipe": {"task": {"name": "sst2"}}}
    record |= {"data": {"labels": ["no", "yes"]}, "embedded": True}
    rows = [{"key": f"k{n}", "role": "fresh", "loss": 1.0, "lr": 1e-3} for n in range(3)]
    metrics = [{"step": n, "loss": 1.0, "seconds": 0.5} for n in (5, 10)]
    return {
        "run.json": json.dumps(record).encode(),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metrics).encode(),
    }


def read_run(folder: Path) -> None:
    """Reads what `--resume`, `eval`, `push` and `bench` read first."""
    from zopeft.jobs.data import Tuned
    from zopeft.jobs.folder import stored_recipe
    from zopeft.jobs.metrics import Metrics
    from zopeft.recipe.load import load_recipe
    from zopeft.report.rows import read_rows as bench_rows

    metrics = Metrics(folder, resume=True)
    metrics.scores(5)
    metrics.keep(int(metrics.seconds))
    Tuned.of(str(folder))
    bench_rows(folder)
    load_recipe("tune", stored=stored_recipe(folder))


@cache
def bench() -> dict[str, bytes]:
    """The rows of a bench."""
    kinds = (("centre", "mezo"), ("grid", "mezo"), ("fresh", "mezo"), ("auto", "fzoo"))
    rows = [
        {
            "key": f"k{n}", "model": "m", "task": "sst2", "space": "lora", "settings": "s",
            "entry": entry, "name": entry, "method": entry, "content": "", "control": "",
            "options": {}, "seed": n, "role": role, "lr": 1e-3, "lr_reason": "", "budget": 100,
            "batch_size": 8, "steps": 50, "forwards": 100, "calibration": 0, "diverged": False,
            "train_loss": 0.5, "val_loss": 0.6, "metric": 0.7, "metric_name": "accuracy",
            "curve": [[10 * k, 1.0] for k in range(1, 11)], "seconds": 1.5, "peak_bytes": None,
            "versions": {"torch": "2"}, "hardware": {"cpu": "x"}, "commit": "abc",
        }
        for n, (role, entry) in enumerate(kinds)
    ]  # fmt: skip
    return {"rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def read_bench(folder: Path) -> None:
    """Makes a bench's report; its pictures take too long."""
    from zopeft.jobs.bench import bench as job

    with mock.patch.multiple(job, draw_curves=mock.DEFAULT, draw_rates=mock.DEFAULT):
        job.render(folder)


def claim() -> dict[str, bytes]:
    """What the process left that had a folder before."""
    lines = [
        {"host": "elsewhere", "pid": 77, "born": "1", "since": "2025-01-01 10:00:00"},
        {"made": ["/dev/shm/none", "/dev/shm"]},
        {"host": os.uname().nodename, "pid": 2**22 + 1, "born": None, "since": "now"},
    ]
    return {".zopeft-claim": b"\n".join(json.dumps(line).encode() for line in lines)}


def read_claim(folder: Path) -> None:
    """Claims a folder: where its file system has locks, and where it has none."""
    from zopeft.jobs.claim import CLAIM, Claim

    content = (folder / CLAIM).read_bytes()
    Claim(folder).release()
    (folder / CLAIM).write_bytes(content)
    os.utime(folder / CLAIM, (0, 0))
    none = OSError(errno.ENOLCK, "no locks")
    with mock.patch.object(fcntl, "flock", side_effect=none):
        Claim(folder).release()


@cache
def checkpoint() -> dict[str, bytes]:
    """A checkpoint of a run with state."""
    rows = [{"input_ids": list(range(6)), "labels": list(range(6))}] * 4
    with tempfile.TemporaryDirectory() as place:
        trainer = _trainer(place, rows)
        trainer.train()
        return read_from(Path(place) / "checkpoint-2")


@cache
def _adapted() -> Any:
    from zopeft.models import attach

    return attach(model(), "lora")


def _trainer(place: str | Path, rows: list[Any], steps: int = 2) -> Any:
    args = zopeft.ZOTrainingArguments(
        output_dir=str(place), max_steps=steps, save_steps=2, learning_rate=1e-3, use_cpu=True,
        method="mezo_adam", disable_tqdm=True, report_to=[], per_device_train_batch_size=2,
    )  # fmt: skip
    return zopeft.ZOTrainer(model=deepcopy(_adapted()), args=args, train_dataset=rows)


def read_checkpoint(folder: Path) -> None:
    """Goes on from a checkpoint."""
    from zopeft.training.checkpoints import seal

    rows = [{"input_ids": list(range(6)), "labels": list(range(6))}] * 4
    if (folder / "complete.json").read_bytes() == checkpoint()["complete.json"]:
        # A stranger makes the sums right.
        seal(folder, 2, "run")
    trainer = _trainer(folder.parent / "out", rows, steps=3)
    trainer.train(resume_from_checkpoint=str(folder))


def read_seals(folder: Path) -> None:
    """Looks at a checkpoint before it is loaded: its mark, its files' sums, the Trainer's state."""
    from zopeft.training.checkpoints import given_checkpoint, seal
    from zopeft.training.loading import read_state

    if (folder / "complete.json").read_bytes() == checkpoint()["complete.json"]:
        seal(folder, 2, "run")
    given_checkpoint(folder)
    read_state(folder)


def state_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages a mark; some of the names in it are those of other places."""
    if dice.random() < 0.8:
        return json_damaged(content, dice)
    told = json.loads(content)
    name = dice.choice(("/dev/zero", "../x", "/etc/passwd", ".", "", "a/../../x", "\0"))
    part = dice.choice(("files", "sums"))
    told[part] = {**told[part], name: dice.choice((0, 1, 2**70))}
    told["sums"][name] = 0
    return json.dumps(told).encode()


JOURNAL = framed(bytes_damaged, 8)
STATES: dict[str, Any] = {
    "complete.json": state_damaged,
    "trainer_state.json": json_damaged,
    "adapter_model.safetensors": tensors_damaged,
    **dict.fromkeys(["optimizer.pt", "scheduler.pt", "rng_state.pth"], pickle_damaged),
}
READERS = (
    Reader("journal", journal, {"journal.bin": JOURNAL}, read_journal),
    Reader("replay", played, {"journal.bin": JOURNAL, "auto.bin": JOURNAL}, replay_journal),
    Reader("start", start, {"start.safetensors": tensors_damaged}, read_start),
    Reader(
        "run",
        run_folder,
        {"run.json": json_damaged, "rows.jsonl": lines_damaged, "metrics.jsonl": lines_damaged},
        read_run,
        folder=True,
    ),
    Reader(
        "bench",
        bench,
        {"rows.jsonl": lines_damaged},
        read_bench,
        folder=True,
        depth="no pictures are drawn",
    ),
    Reader("claim", claim, {".zopeft-claim": lines_damaged}, read_claim, folder=True),
    Reader(
        "mark",
        checkpoint,
        {name: STATES[name] for name in ("complete.json", "trainer_state.json")},
        read_seals,
        folder=True,
        told=("resume",),
        depth="no step is made",
    ),
    Reader("checkpoint", checkpoint, STATES, read_checkpoint, folder=True),
)
