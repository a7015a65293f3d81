"""What the runs of `methods.py` stand on: a model put back to its start, batches, losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import zopeft
from zopeft.errors import InputError
from zopeft.finetuner.digest import digest_of
from zopeft.methods import METHODS
from zopeft.models import load_model
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss
from zopeft.tasks.frequency import frequency_options

TUNED_ON, REPORTED_ON = 128, 256
"""Rows whose loss chooses a rate (of the training rows, held out), and validation rows."""
CLIP = 2.0
"""Largest projected gradient, in those before: what zopeft does of its own accord at lr=auto."""
AS_IT_IS = ("agzo", "forward_gradient", "grzo")
"""Methods that change, see or differentiate the forward pass: it is not compiled for them."""


TEXT = ("cb", "wsc", "drop")
"""Tasks of the package whose text a mask is learned on."""
EMBEDDED = Path(zopeft.__file__).parent / "embedded" / "data"


def of_text(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the loss of all tokens of a batch, as in pre-training."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    found: Tensor = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
    ).loss
    return found


@dataclass(frozen=True)
class Entry:
    """Who runs.

    Args:
        name: In rows and tables.
        method: A name in the registry.
        finetuner: Folder of a learned fine-tuner; "" for none.
        shuffled: Whether all that the fine-tuner holds serves other blocks: its control.
        options: Arguments of the method beside its defaults.
    """

    name: str
    method: str
    finetuner: str = ""
    shuffled: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, str]:
        """What a run's row says of the fine-tuner: nothing where there is none."""
        return {"finetuner": digest_of(learned(self.finetuner, False))} if self.finetuner else {}

    def make(
        self, blocks: zopeft.Blocks, data: Any, lr: float | str, seed: int, mask: Any = None
    ) -> Any:
        """Returns the optimizer over some blocks; `mask()` serves methods that need one."""
        given = {"probes": "separate", "clip": CLIP, **self.options}
        if mask and "mask" in METHODS[self.method].required:
            given["mask"] = mask()
        if self.finetuner:
            given["finetuner"] = learned(self.finetuner, self.shuffled)
            given |= frequency_options(None, given["finetuner"], blocks, [data])
        return METHODS[self.method](blocks, lr=lr, seed=seed, **given)


@cache
def learned(folder: str, shuffled: bool) -> Any:
    """Returns a fine-tuner or its control."""
    found = zopeft.FineTuner.from_pretrained(folder)
    return found.shuffled(0) if shuffled else found


def entries(finetuner: str) -> list[Entry]:
    """Returns all methods without gradients, MeZO first; the learned one with its control."""
    found = []
    for name in METHODS:
        kind = METHODS[name]
        if kind.order:
            continue
        if not kind.needs_finetuner:
            found.append(Entry(name, name))
        elif finetuner:
            found.append(Entry(name, name, finetuner))
            found.append(Entry(f"{name}, shuffled", name, finetuner, shuffled=True))
    return found


class Ground:
    """A model in one space on one task.

    Args:
        model: Folder of a float model.
        data: Folder that holds one folder a task.
        task: The task's name.
        space: "full" or "lora" (rank 8, query and value projections).
        batch: Rows a batch.
        length: Most tokens of a row; rows whose answer leaves no room are left out.
        compiled: Whether the training passes run compiled.
    """

    def __init__(
        self, model: str, data: str, task: str, space: str, batch: int, length: int, compiled: bool
    ) -> None:
        self.space, self.batch, self.length, self.compiled = space, batch, length, compiled
        self.model, self.tokenizer = load_model(model, "float32", device="cpu")
        self.model.config.use_cache = False
        self.decoder = self.model.model
        if space == "lora":
            config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            self.model = get_peft_model(self.model, config)
        self.model.eval()
        self.blocks = zopeft.discover(self.model)
        self.task, self.folder = load_task(task), f"{data}/{task}"
        self._read()
        self._starts: dict[int, list[Tensor]] = {}
        self._plain = self.decoder.forward
        self._fast = torch.compile(self._plain, dynamic=False) if compiled else self._plain
        self._batches: dict[int, list[dict[str, Tensor]]] = {}
        self._mask: Any = None

    def closure(self, method: Any, batch: dict[str, Tensor]) -> Any:
        """Returns what a method's step calls: a plain function, where that does."""
        if method.groups:
            return zopeft.BatchLoss(self.model, batch, task_loss)
        return lambda: task_loss(self.model, batch)

    @property
    def size(self) -> int:
        """Trained weights."""
        return int(self.blocks.numel)

    def _read(self) -> None:
        train = self._encoded("train")
        self.train, held = train[:-TUNED_ON], train[-TUNED_ON:]
        self.tuned_on = self._groups(held)
        reported = self._encoded("validation")[:REPORTED_ON]
        self.reported_on, self.validation = self._groups(reported), len(reported)

    def _encoded(self, split: str) -> list[Any]:
        found: list[Any] = []
        for row in load_rows(self.task, split, self.folder):
            try:
                found += TaskDataset(self.task, [row], self.tokenizer, self.length).encoded
            except InputError:
                continue
        return found

    def _groups(self, rows: list[Any]) -> list[dict[str, Tensor]]:
        """Returns batches of rows of about one length."""
        collate = Collator(self.tokenizer)
        rows = sorted(rows, key=lambda row: sum(map(len, (*row.prompts, *row.options))))
        return [collate(rows[first : first + 32]) for first in range(0, len(rows), 32)]

    def reset(self, seed: int, entry: Entry) -> None:
        """Puts the weights to the start of a seed, and the forward pass to what an entry needs."""
        # Only an adapter begins elsewhere with another seed.
        place = seed if self.space == "lora" else 0
        if place not in self._starts:
            if self.space == "lora":
                torch.manual_seed(seed)
                for module in self.model.modules():
                    if hasattr(module, "reset_lora_parameters"):
                        module.reset_lora_parameters("default", True)
            self._starts[place] = [b.parameter.detach().clone() for b in self.blocks]
        for block, start in zip(self.blocks, self._starts[place], strict=True):
            # A tensor of its own: an earlier run's method may hold views of the old one.
            block.parameter.data = start.clone()
        self.decoder.forward = self._plain if entry.method in AS_IT_IS else self._fast

    def mask(self) -> Any:
        """Returns the weights of the largest squared gradients on text of no evaluated task."""
        if self._mask is None:
            self.reset(0, Entry("mezo", "agzo"))
            collate = Collator(self.tokenizer)
            batches = []
            for name in TEXT:
                task = load_task(name)
                rows = load_rows(task, "train", f"{EMBEDDED}/{name}")[:64]
                rows = TaskDataset(task, rows, self.tokenizer, 2 * self.length).encoded
                batches += [collate(rows[first : first + 8]) for first in range(0, len(rows), 8)]
            self._mask = zopeft.sensitive_mask(
                self.model, batches, blocks=self.blocks, loss_function=of_text
            )
        return self._mask

    def moved(self, seed: int) -> float:
        """Returns how far the weights are from their start."""
        place = seed if self.space == "lora" else 0
        pairs = zip(self.blocks, self._starts[place], strict=True)
        changes = (block.parameter.detach() - start for block, start in pairs)
        return math.sqrt(sum(float(change.double().square().sum()) for change in changes))

    def feed(self, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yields training batches without end, the same of a seed."""
        known = self._batches.setdefault(seed, [])
        yield from known
        generator, collate = torch.Generator().manual_seed(seed), Collator(self.tokenizer)
        made, whole = 0, len(self.train) // self.batch
        while True:
            order = torch.randperm(len(self.train), generator=generator).tolist()
            for number in range(whole):
                made += 1
                if made <= len(known):
                    continue
                rows = order[number * self.batch : (number + 1) * self.batch]
                batch = self._padded(collate([self.train[row] for row in rows]))
                known.append(batch)
                yield batch

    def _padded(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch whose shape is the same for all, where passes are compiled."""
        missing = self.length - batch["input_ids"].shape[1]
        if not self.compiled or not missing:
            return batch
        with_zeros = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        pad = torch.nn.functional.pad
        return {name: pad(batch[name], (0, missing), value=v) for name, v in with_zeros.items()}

    @torch.no_grad()
    def loss(self, groups: list[dict[str, Tensor]]) -> float:
        """Returns the mean loss over the answers' tokens of some rows; inf if not finite."""
        before, self.decoder.forward = self.decoder.forward, self._plain
        total = tokens = 0.0
        for group in groups:
            count = int((group["labels"][:, 1:] != -100).sum())
            total += float(task_loss(self.model, group)) * count
            tokens += count
        self.decoder.forward = before
        return total / tokens if math.isfinite(total) else math.inf
