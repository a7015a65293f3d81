"""Fine-tuners, and the networks that the paper's authors published."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

import torch
from fuzz_damage import json_damaged, pickle_damaged, tensors_damaged
from fuzz_models import read_from
from fuzz_reader import Reader
from fuzz_rows import ROWS
from torch import nn

import zopeft
from zopeft.embedded import MODEL_DIR


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
        return read_from(Path(place) / "f")


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


def read_networks(path: Path) -> None:
    """Reads pickled networks."""
    from zopeft.finetuner.pickled import read_pickle

    read_pickle(path)


READERS = (
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
    Reader("networks", networks, {"networks.pth": pickle_damaged}, read_networks),
)
