"""A derivative of a model: all its weights tuned on other text until they are some per cent away.

Fine-tuners are reused on derivatives of the model that they were learned on; this makes one
that is a known distance away. AdamW on the passages of DIR/TASK, as plain text; the distance is
the norm of what changed over the norm of the weights. Losses and distances are printed; what
`real_model.py` measures on the folder goes into rows of the folder's name.

    python benchmarks/derivative.py MODEL OUT --data DIR --task squad --column context
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from zopeft.errors import InputError, input_error

WARM = 10
"""Steps over which the learning rate rises."""
FURTHEST = 2.0
"""Times the distance that was asked beyond which a step has gone too far, or is no number."""


def passages(folder: Path, column: str) -> list[str]:
    """Returns the different texts of a column of a task's training rows."""
    path = folder / "train.jsonl"
    if not path.exists():
        raise input_error("--data", "no such file", str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if not rows or column not in rows[0]:
        there = ", ".join(rows[0]) if rows else "no row"
        raise input_error("--column", f"not in {path}", column, f"there is {there}")
    return list(dict.fromkeys(row[column] for row in rows))


def batches(ids: Sequence[int], length: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yields batches of `count` cuts of all texts, [count, length], without end."""
    cuts = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    draw = random.Random(seed)
    while True:
        order = list(range(len(cuts)))
        draw.shuffle(order)
        for first in range(0, len(order) - count + 1, count):
            yield cuts[order[first : first + count]]


def distance(model: Any, start: dict[str, Tensor]) -> float:
    """Returns the norm of what changed over the norm of the weights."""
    moved = total = 0.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            moved += float((weight - start[name]).double().square().sum())
            total += float(start[name].double().square().sum())
    return math.sqrt(moved / total)


def derive(args: argparse.Namespace) -> None:
    """Tunes and saves."""
    if Path(args.out).exists():
        raise input_error("OUT", "exists", args.out, "name another folder")
    texts = passages(Path(args.data) / args.task, args.column)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    joined = (tokenizer.eos_token or "\n").join(texts)
    feed = batches(tokenizer(joined)["input_ids"], args.length, args.batch, args.seed)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    model.train()
    step, away = 0, 0.0
    while away < args.away:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / WARM)
        batch = next(feed)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, away = step + 1, distance(model, start)
        if not away <= FURTHEST * args.away:
            what = f"step {step} went to {away:.2g} of the norm, {args.away:.2g} were asked"
            raise input_error("--lr", what, args.lr, "take a lower one")
        stands = round(float(loss.detach()), 4)
        print(json.dumps({"step": step, "loss": stands, "away": round(away, 5)}))
    model.eval().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a pretrained model")
    parser.add_argument("out", help="folder of the derivative; new")
    parser.add_argument("--data", required=True, help="folder that holds one folder a task")
    parser.add_argument("--task", default="squad")
    parser.add_argument("--column", default="context", help="texts of the training rows")
    parser.add_argument("--away", type=float, default=0.04, help="where to stop, of the norm")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        derive(arguments())
    except InputError as error:
        raise SystemExit(f"derivative.py: {error}") from None
