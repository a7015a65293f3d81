"""What server and clients must have alike: the model, its adapter and the method."""

from __future__ import annotations

import zopeft
from zopeft.embedded import DATA_DIR
from zopeft.models import attach, load_model
from zopeft.tasks import task_loss

CLIENTS, ROWS, BATCH = 2, 64, 8


def make_method():
    """Returns a method over a LoRA that starts from the same numbers everywhere."""
    model, tokenizer = load_model()  # the embedded one; name your own here
    model = attach(model, "lora", {"r": 4}, seed=1)
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-2, seed=1, directions=4)
    return method, tokenizer


def own_batches(method, tokenizer, client):
    """Returns what gives a client's batch of a step: every second row is its own."""
    data = zopeft.load_data(DATA_DIR / "sst2", tokenizer, task="sst2", model=method.blocks.model)
    rows = [data.train[number] for number in range(client % CLIENTS, ROWS, CLIENTS)]

    def batch(step):
        chosen = [rows[(BATCH * step + place) % len(rows)] for place in range(BATCH)]
        return zopeft.BatchLoss(method.blocks.model, data.collator(chosen), task_loss)

    return batch
