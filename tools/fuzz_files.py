"""The readers that `fuzz.py` tries, each with files that are good."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_damage import (
    bytes_damaged,
    framed,
    json_damaged,
    tensors_damaged,
    yaml_damaged,
)
from torch import nn

import zopeft
from zopeft.embedded import MODEL_DIR

Damage = Callable[[bytes, random.Random], bytes]
CASE = "case"
"""Name of the folders that are given to readers."""
ROWS = [
    {"text": f"The film was good, number {n}.", "label": "yes" if n % 2 else "no"} for n in range(9)
]
TASK = b"""name: weather
prompt: "{report} Will it rain?"
choices: ["No", "Yes"]
label: rain
label_by: text
max_new_tokens: 4
splits: {validation: dev}
hub: {path: organisation/weather, config: main}
about: Tomorrow's weather
"""
RECIPE = b"""job: tune
about: A run of one's own
model: {name: embedded, dtype: float32}
task: {name: sst2, train_examples: 100, max_length: 64}
method: {name: mezo, eps: 1.0e-3, lr: auto, directions: 4}
training: {steps: 200, batch_size: 8, seed: 1}
peft: {name: lora}
spaces: {full: {training: {steps: 100}}}
tasks: {squad: {training: {batch_size: 2}}}
small: {training: {steps: 10}}
"""


@dataclass(frozen=True)
class Reader:
    """What is read, and how.

    Args:
        name: On the command line.
        files: Returns the good files, name to content.
        damage: Name of a file to what is done to it; one is chosen a case.
        read: Called with the file, or with the folder where there are several files.
        folder: Whether the folder is read.
    """

    name: str
    files: Callable[[], Mapping[str, bytes]]
    damage: Mapping[str, Damage]
    read: Callable[[Path], Any]
    folder: bool = False

    def good(self, place: Path) -> Path:
        """Writes the files as they are, and returns what is to be read."""
        folder = place / CASE
        folder.mkdir()
        for name, content in self.files().items():
            (folder / name).write_bytes(content)
        return folder if self.folder else folder / next(iter(self.damage))

    def make(self, place: Path, dice: random.Random) -> Path:
        """Writes the files, one of them damaged, and returns what is to be read."""
        folder = place / CASE
        self.good(place)
        victim = dice.choice(sorted(self.damage))
        (folder / victim).write_bytes(self.damage[victim](self.files()[victim], dice))
        return folder if self.folder else folder / victim


def _model(width: int = 16, vocabulary: int = 97) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        ).eval()


@cache
def _base() -> Any:
    return _model()


def _read_from(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@cache
def journal() -> dict[str, bytes]:
    """A journal with records of every kind."""
    from zopeft.journal import Journal
    from zopeft.journal.header import header_of
    from zopeft.optim.record import StepRecord

    method = zopeft.MeZO(zopeft.discover(_base()), lr=1e-3, seed=3)
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
        return _read_from(Path(place))


def read_journal(path: Path) -> None:
    """Reads every record."""
    from zopeft.journal import Journal

    list(Journal.open(path).records())


def replay_journal(path: Path) -> None:
    """Opens a journal and replays it."""
    from zopeft.journal import rebuild

    method = zopeft.MeZO(zopeft.discover(_model()), lr=1e-3, seed=3)
    rebuild(path, method)


@cache
def played() -> dict[str, bytes]:
    """The journal of a short run."""
    from zopeft.journal import Journal
    from zopeft.journal.header import header_of

    model = _model()
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, seed=3)
    ids = torch.arange(12).view(2, 6)
    with tempfile.TemporaryDirectory() as place:
        with Journal.create(Path(place) / "journal.bin", header_of(method)) as found:
            for _ in range(6):
                method.step(zopeft.BatchLoss(model, {"input_ids": ids, "labels": ids}))
                found.append(method.last_record)
        return _read_from(Path(place))


@cache
def finetuner() -> dict[str, bytes]:
    """A fine-tuner with subspaces and a mask, of three meta-steps."""
    from zopeft.models import load_model

    model, tokenizer = load_model(str(MODEL_DIR), "float32", device="cpu")
    rows = {"sst2": [{"sentence": row["text"], "label": n % 2} for n, row in enumerate(ROWS)]}
    with tempfile.TemporaryDirectory() as place, redirect_stderr(io.StringIO()):
        found = zopeft.meta_train(
            model, ["sst2"], tokenizer, rows=rows, max_length=32, steps=3, batch_size=4, mask=0.001
        )
        found.save_pretrained(Path(place) / "f")
        return _read_from(Path(place) / "f")


@cache
def networks() -> dict[str, bytes]:
    """Networks as the paper's authors save them."""
    parts = {
        name: nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 1))
        for name in ("a.weight", "b")
    }
    file = io.BytesIO()
    torch.save(parts, file)
    return {"networks.pth": file.getvalue()}


def pickle_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages the pickle in an archive, whose checksums are made right, or the whole."""
    if dice.random() < 0.4:
        return bytes_damaged(content, dice)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(
                entry.filename,
                bytes_damaged(data, dice) if entry.filename.endswith(".pkl") else data,
            )
    return made.getvalue()


@cache
def adapter() -> dict[str, bytes]:
    """A LoRA as PEFT saves it."""
    from zopeft.models import attach

    with tempfile.TemporaryDirectory() as place:
        attach(_model(), "lora").save_pretrained(place)
        found = _read_from(Path(place))
    return {name: found[name] for name in ("adapter_config.json", "adapter_model.safetensors")}


def read_adapter(folder: Path) -> None:
    """Loads an adapter onto a small model."""
    from zopeft.models import load_adapter

    load_adapter(_model(), folder)


@cache
def model_folder() -> dict[str, bytes]:
    """A small model with a tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    with tempfile.TemporaryDirectory() as place:
        _model(8, len(tokenizer)).save_pretrained(place)
        tokenizer.save_pretrained(place)
        return _read_from(Path(place))


def read_model(folder: Path) -> None:
    """Loads model and tokenizer."""
    from zopeft.models import load_model

    load_model(str(folder), "float32", device="cpu")


def read_tokenizer(folder: Path) -> None:
    """Loads a tokenizer and reads a text with it."""
    from zopeft.models import resolve
    from zopeft.models.loading import load_tokenizer

    load_tokenizer(resolve(str(folder)))("Tom has a ball.")


def read_recipe(path: Path) -> None:
    """Reads a recipe and all that it can make."""
    from zopeft.recipe.load import check_recipe

    check_recipe(str(path), "tune")


def read_task(path: Path) -> None:
    """Reads a task."""
    from zopeft.tasks.custom import read_task as read

    read(path)


@cache
def tables() -> dict[str, bytes]:
    """Rows in every format."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    csv = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS)
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), file)
    return {
        "rows.jsonl": lines.encode(),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": csv.encode(),
        "rows.tsv": csv.replace(",", "\t").encode(),
        "rows.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
        "rows.parquet": file.getvalue(),
    }


def lines_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages one line of JSON lines."""
    lines = content.splitlines()
    at = dice.randrange(len(lines))
    lines[at] = json_damaged(lines[at], dice)
    return b"\n".join(lines)


@cache
def _words() -> Any:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(MODEL_DIR)
    found.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return found


def read_rows(path: Path) -> None:
    """Reads rows, and makes examples of them."""
    zopeft.load_data(path, _words(), max_length=32)


def stream_rows(path: Path) -> None:
    """Reads rows as they are needed, some of which are looked at before, beyond a pass of them."""
    data = zopeft.load_data(path, _words(), max_length=32, streaming=True, shuffle_buffer=5)
    list(itertools.islice(data.train, 60))


CHATS = "".join(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": "A number."},
            ]
        }
    )
    + "\n"
    for n in range(4)
).encode()


@cache
def run_folder() -> dict[str, bytes]:
    """What a run leaves beside its weights."""
    record = {"status": "interrupted", "job": "tune", "recipe": {"task": {"name": "sst2"}}}
    rows = [{"key": f"k{n}", "role": "fresh", "loss": 1.0, "lr": 1e-3} for n in range(3)]
    metrics = [{"step": n, "loss": 1.0, "seconds": 0.5} for n in (5, 10)]
    return {
        "run.json": json.dumps(record).encode(),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metrics).encode(),
    }


def read_run(folder: Path) -> None:
    """Reads what `--resume` reads first, and what `bench --report` reads."""
    from zopeft.jobs.folder import stored_recipe
    from zopeft.jobs.metrics import Metrics
    from zopeft.recipe.load import load_recipe
    from zopeft.report.rows import read_rows as bench_rows

    Metrics(folder, resume=True).scores(5)
    bench_rows(folder)
    load_recipe("tune", stored=stored_recipe(folder))


@cache
def checkpoint() -> dict[str, bytes]:
    """A checkpoint of a run with state."""
    rows = [{"input_ids": list(range(6)), "labels": list(range(6))}] * 4
    with tempfile.TemporaryDirectory() as place:
        trainer = _trainer(place, rows)
        trainer.train()
        return _read_from(Path(place) / "checkpoint-2")


def _trainer(place: str | Path, rows: list[Any], steps: int = 2) -> Any:
    from zopeft.models import attach

    args = zopeft.ZOTrainingArguments(
        output_dir=str(place), max_steps=steps, save_steps=2, learning_rate=1e-3, use_cpu=True,
        method="mezo_adam", disable_tqdm=True, report_to=[], per_device_train_batch_size=2,
    )  # fmt: skip
    return zopeft.ZOTrainer(model=attach(_model(), "lora"), args=args, train_dataset=rows)


def read_checkpoint(folder: Path) -> None:
    """Goes on from a checkpoint."""
    from zopeft.training.checkpoints import seal

    rows = [{"input_ids": list(range(6)), "labels": list(range(6))}] * 4
    if (folder / "complete.json").read_bytes() == checkpoint()["complete.json"]:
        # A stranger makes the sums right.
        seal(folder, 2, "run")
    trainer = _trainer(folder.parent / "out", rows, steps=3)
    trainer.train(resume_from_checkpoint=str(folder))


def _of(names: list[str], damage: Damage) -> dict[str, Damage]:
    return dict.fromkeys(names, damage)


READERS = {
    reader.name: reader
    for reader in (
        Reader("journal", journal, {"journal.bin": framed(bytes_damaged, 8)}, read_journal),
        Reader("replay", played, {"journal.bin": framed(bytes_damaged, 8)}, replay_journal),
        Reader(
            "finetuner",
            finetuner,
            {
                "finetuner.safetensors": tensors_damaged,
                "finetuner_config.json": json_damaged,
                "mask.safetensors": tensors_damaged,
            },
            zopeft.FineTuner.from_pretrained,
            folder=True,
        ),
        Reader("networks", networks, {"networks.pth": pickle_damaged}, lambda path: _pickle(path)),
        Reader("recipe", lambda: {"own.yaml": RECIPE}, {"own.yaml": yaml_damaged}, read_recipe),
        Reader("task", lambda: {"own.yaml": TASK}, {"own.yaml": yaml_damaged}, read_task),
        Reader(
            "data",
            tables,
            {
                "rows.jsonl": lines_damaged,
                "rows.json": json_damaged,
                **_of(["rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.parquet"], bytes_damaged),
            },
            read_rows,
        ),
        Reader(
            "streams",
            tables,
            {
                "rows.jsonl": lines_damaged,
                "rows.json": json_damaged,
                **_of(["rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.parquet"], bytes_damaged),
            },
            stream_rows,
        ),
        Reader("chats", lambda: {"c.jsonl": CHATS}, {"c.jsonl": lines_damaged}, read_rows),
        Reader(
            "run",
            run_folder,
            {"run.json": json_damaged, "rows.jsonl": lines_damaged, "metrics.jsonl": lines_damaged},
            read_run,
            folder=True,
        ),
        Reader(
            "adapter",
            adapter,
            {"adapter_config.json": json_damaged, "adapter_model.safetensors": tensors_damaged},
            read_adapter,
            folder=True,
        ),
        Reader(
            "model",
            model_folder,
            {"config.json": json_damaged, "model.safetensors": tensors_damaged},
            read_model,
            folder=True,
        ),
        Reader(
            "tokenizer",
            model_folder,
            _of(["tokenizer.json", "tokenizer_config.json"], json_damaged),
            read_tokenizer,
            folder=True,
        ),
        Reader(
            "checkpoint",
            checkpoint,
            {
                **_of(["complete.json", "trainer_state.json"], json_damaged),
                "adapter_model.safetensors": tensors_damaged,
                **_of(["optimizer.pt", "scheduler.pt", "rng_state.pth"], pickle_damaged),
            },
            read_checkpoint,
            folder=True,
        ),
    )
}


def _pickle(path: Path) -> None:
    from zopeft.finetuner.pickled import read_pickle

    read_pickle(path)
