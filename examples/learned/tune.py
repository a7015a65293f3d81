"""Tunes with a fine-tuner and with its controls, with as many forward passes each.

Run it:  python examples/learned/tune.py FINETUNER --out curves.json

Who runs: MeZO, which takes all directions alike; the fine-tuner; the fine-tuner with all that it
learned serving other blocks (shuffled); and the same networks and subspaces at a random start
(untrained). What was learned is worth something only where it is ahead of all three. All see the
same batches, from the same start, at ``lr="auto"``, which measures each one's rate as it goes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.models import load_model
from zopeft.tasks import load_rows, load_task, task_loss
from zopeft.tasks.dataset import Collator, TaskDataset
from zopeft.tasks.frequency import frequency_options

BATCH, LENGTH = 8, 160
"""Rows a batch, and the most tokens of a row."""
Maker = Callable[[zopeft.Blocks, Any], Any]
"""From blocks and training data to an optimizer."""


def entries(finetuner: zopeft.FineTuner, seed: int) -> dict[str, Maker]:
    """Returns who runs, by name."""

    def by(one: zopeft.FineTuner) -> Maker:
        def made(blocks: zopeft.Blocks, data: Any) -> Any:
            # Rows of the vocabulary move by how often the training data has their tokens.
            rows = frequency_options(None, one, blocks, [data])
            return zopeft.ZOFineTuner(blocks, one, seed=seed, **rows)

        return made

    return {
        "MeZO": lambda blocks, data: zopeft.MeZO(blocks, seed=seed),
        "learned": by(finetuner),
        "shuffled": by(finetuner.shuffled(seed)),
        "untrained": by(finetuner.untrained(seed)),
    }


def batches(data: TaskDataset, collate: Collator, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields batches without end, the same of a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for first in range(0, len(order) - BATCH + 1, BATCH):
            yield collate([data[index] for index in order[first : first + BATCH]])


@torch.no_grad()
def tune(
    model: Any, data: TaskDataset, collate: Collator, make: Maker, passes: int, seed: int
) -> Any:
    """Tunes from the model's start, and puts the model back.

    Returns:
        The curve: [forward passes, loss of the step's batch] of every step.
    """
    blocks = zopeft.discover(model)
    start = [block.parameter.detach().clone() for block in blocks]
    optimizer, curve = make(blocks, data), []
    for batch in batches(data, collate, seed):
        # A packed batch: texts share rows, so that no padding is computed.
        loss = optimizer.step(zopeft.BatchLoss(model, batch, task_loss, "auto"))
        curve.append([optimizer.forward_passes, round(float(loss), 5)])
        if optimizer.forward_passes >= passes:
            break
    for block, first in zip(blocks, start, strict=True):
        # A tensor of its own: the optimizer may hold views of the old one.
        block.parameter.data = first
    return curve


def compare(
    finetuner: str, task: str, passes: int, seed: int, model: str = "", data: str = ""
) -> dict[str, Any]:
    """Tunes with each entry in turn; returns its curves by name."""
    learner, tokenizer = load_model(model or str(MODEL_DIR), "float32", device="cpu")
    learner.eval()
    chosen = load_task(task)
    rows = load_rows(chosen, "train", data or None, embedded=not data)
    encoded = TaskDataset(chosen, rows, tokenizer, LENGTH)
    found = entries(zopeft.FineTuner.from_pretrained(finetuner), seed)
    curves = {}
    for name, make in found.items():
        curves[name] = tune(learner, encoded, Collator(tokenizer), make, passes, seed)
        print(f"{name}: loss {ends(curves[name])}", flush=True)
    return {"model": Path(model).name or "the embedded model", "task": task, "curves": curves}


def ends(curve: list[list[float]]) -> str:
    """Returns the mean loss of a curve's first and of its last tenth, in words."""
    width = max(1, len(curve) // 10)
    first, last = (sum(loss for _, loss in p) / width for p in (curve[:width], curve[-width:]))
    return f"{first:.3f} -> {last:.3f} in {curve[-1][0]:.0f} forward passes"


def main() -> None:
    """Reads the command line, tunes, writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("finetuner", help="folder or hub id")
    parser.add_argument("--model", default="", help="folder; the embedded model where left out")
    parser.add_argument("--task", default="squad")
    parser.add_argument("--data", default="", help="folder of the task; the embedded samples")
    parser.add_argument("--passes", type=int, default=400, help="forward passes of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="curves.json")
    args = parser.parse_args()
    told = compare(args.finetuner, args.task, args.passes, args.seed, args.model, args.data)
    Path(args.out).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
