"""What the runs of `real_model.py` stand on: entries, short rows, packed batches, scores."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from methods_ground import CLIP, Ground
from torch import Tensor

import zopeft
from zopeft.errors import input_error
from zopeft.finetuner.digest import digest_of
from zopeft.jobs.bench.entry import LEARNED, OF_SUBSPACES, Entry, parse_entry
from zopeft.jobs.bench.making import finetuner_of
from zopeft.methods import METHODS
from zopeft.models.learned_start import start_from_finetuner
from zopeft.tasks import TaskDataset, evaluate, load_rows, task_loss
from zopeft.tasks.evaluation import mean_loss
from zopeft.tasks.feed import Feed
from zopeft.tasks.frequency import frequency_options
from zopeft.tasks.loss import option_sums
from zopeft.tasks.scores import OptionScores, accuracy, choice_scores

LENGTHS = {"sst2": 48, "copa": 64, "boolq": 96, "squad": 160}
"""Most tokens of a row: longer ones are left out, none is cut."""
SEVERAL = "directions=4 sides=one"
"""Options of the entries that take four one-sided directions a step."""
OF_LORA = ("start=", "train=")
"""Words of an entry that say how a LoRA begins, and what of it is trained.

``start=finetuner`` is `start_from_finetuner` by the entry's own one or its control,
``start=FOLDER`` by one that takes no part otherwise; ``train=B`` leaves A as it begins.
"""
LONGEST = 8192
"""Tokens of a row, as far as they are counted."""
SCORED = 16
"""Rows of a forward pass that scores."""


@dataclass(frozen=True)
class Competitor:
    """Who runs, written as `zopeft bench` takes it.

    Args:
        entry: Method, fine-tuner or control, and options; its label is the name in rows.
        lora: Of `OF_LORA`, what is not "start=random train=AB".
    """

    entry: Entry
    lora: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In rows and tables."""
        return self.entry.name

    @property
    def method(self) -> str:
        """A name in the registry."""
        return self.entry.method

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's row says of it: what was learned by its digest, not by its folder."""
        told: dict[str, Any] = {"method": self.method}
        told |= {"options": {key: str(value) for key, value in self.entry.options.items()}}
        told["options"] |= self.lora
        if self.start is not None:
            told["options"]["start"] = digest_of(self.start)
        if self.entry.finetuner:
            told |= {"control": self.entry.control, "shuffle": self.entry.shuffle}
            told |= {"finetuner": digest_of(made(self.entry.finetuner))}
        return told

    @property
    def start(self) -> Any:
        """The fine-tuner whose directions of the inputs a LoRA's A begins with; None for noise."""
        given = self.lora.get("start")
        if given == "finetuner":
            return made(self.entry.finetuner, self.entry.control, self.entry.shuffle)
        return None if given is None else made(given)

    @property
    def only_b(self) -> bool:
        """Whether a LoRA's A stays as it begins."""
        return self.lora.get("train") == "B"

    def make(
        self, blocks: zopeft.Blocks, data: Any, lr: float | str, seed: int, mask: Any = None
    ) -> Any:
        """Returns the optimizer over some blocks, clipped as zopeft does of its own accord."""
        given: dict[str, Any] = {"clip": CLIP, **self.entry.options}
        rows = given.pop("rows", None)
        if self.entry.finetuner:
            given["finetuner"] = made(self.entry.finetuner, self.entry.control, self.entry.shuffle)
        given |= frequency_options(rows, given.get("finetuner"), blocks, [data])
        return METHODS[self.method](blocks, lr=lr, seed=seed, **given)


@cache
def made(folder: str, control: str = "", shuffle: int = 0) -> Any:
    """Returns a fine-tuner or one of its controls, each made once."""
    return finetuner_of(Entry(LEARNED, folder, control, {}, shuffle))


def competitors(finetuner: str, lines: Sequence[str] = ()) -> list[Competitor]:
    """Returns who runs, MeZO first; entries of what is learned where there is a fine-tuner.

    Args:
        finetuner: Its folder; "" for none.
        lines: More entries, as `zopeft bench --method` takes them: ``finetuner FOLDER key=value``.

    Raises:
        InputError: A line is unreadable, or two have one name.
    """
    own = [("mezo", "mezo"), ("rows", "mezo rows=frequency"), ("mezo K=4", f"mezo {SEVERAL}")]
    own += [("mezo B", "mezo train=B")]
    if finetuner:
        learned = f"finetuner {finetuner!r}"
        own += [("learned", learned), ("learned K=4", f"{learned} {SEVERAL}")]
        controls = ("scales", "shuffled", "untrained", "random")
        own += [(control, f"{learned} {control}") for control in controls]
        own += [("learned turns", f"{learned} budget=turns")]
        own += [("learned examples", f"{learned} share=examples")]
        own += [("mezo start", f"mezo start={finetuner!r} train=B")]
        own += [("learned start", f"{learned} start=finetuner train=B")]
        own += [("shuffled start", f"{learned} shuffled start=finetuner train=B")]
    found = [_competitor(f"{line} label={name!r}") for name, line in own]
    found += [_competitor(line) for line in lines]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise input_error("--entry", "two have one name", name, "add label=NAME")
    return found


def _competitor(line: str) -> Competitor:
    words = shlex.split(line)
    lora = dict(word.split("=", 1) for word in words if word.startswith(OF_LORA))
    return Competitor(parse_entry(shlex.join(w for w in words if not w.startswith(OF_LORA))), lora)


def serves(one: Competitor, space: str) -> bool:
    """Whether an entry differs in a space from others.

    An adapter has no learned subspace, and full weights have no start of their own.
    """
    if space == "full":
        return not one.lora
    return bool(one.lora) or one.entry.control not in OF_SUBSPACES


@dataclass(frozen=True)
class Amounts:
    """How many rows are looked at.

    Args:
        held: Training rows that are held out: rates are chosen by their loss.
        reported: Validation rows.
        answers: Validation rows, of those, whose answers are generated (squad).
    """

    held: int = 64
    reported: int = 256
    answers: int = 64


class RealGround(Ground):
    """A pretrained model in one space on the short rows of one task.

    Args:
        model: Its folder.
        data: Folder that holds one folder a task.
        task: The task's name, or a task file.
        space: "full" or "lora".
        batch: Rows a batch.
        length: Most tokens of a row, with its longest option.
        amounts: How many rows are looked at.
    """

    def __init__(
        self,
        model: str,
        data: str,
        task: str,
        space: str,
        batch: int,
        length: int,
        amounts: Amounts,
    ) -> None:
        self.amounts = amounts
        super().__init__(model, data, task, space, batch, length, compiled=False)
        self._all_blocks = self.blocks

    def _read(self) -> None:
        held = self.amounts.held
        rows = self._short("train")
        if len(rows) <= held + self.batch:
            do = "take a greater --length"
            raise input_error("train", f"{len(rows)} rows are as short", self.length, do)
        self.held, self.reported = rows[-held:], self._short("validation")[: self.amounts.reported]
        self.train = TaskDataset(self.task, rows[:-held], self.tokenizer, LONGEST).encoded
        self.tuned_on, self.reported_on = self.held, self.reported
        self.validation = len(self.reported)

    def _short(self, split: str) -> list[Any]:
        """Returns the rows of a split that have at most `length` tokens."""
        rows = load_rows(self.task, split, self.folder)
        loss = "choice" if self.task.kind == "choice" else None
        data = TaskDataset(self.task, rows, self.tokenizer, LONGEST, loss)
        return [
            rows[n] for n, one in zip(data.owners, data.encoded, strict=True) if self._fits(one)
        ]

    def _fits(self, one: Any) -> bool:
        pairs = zip(one.prompts, one.options, strict=True)
        return max(len(prompt) + len(option) for prompt, option in pairs) <= self.length

    def reset(self, seed: int, entry: Any) -> None:
        """Puts the weights to the start of a seed, and of an entry."""
        if self.space == "full":
            super().reset(seed, entry)
            return
        self.blocks = self._all_blocks
        super().reset(seed, entry)
        if entry.start is not None:
            start_from_finetuner(self.blocks, entry.start, seed)
        for block in self.blocks:
            block.parameter.requires_grad_(not (entry.only_b and ".lora_A." in block.name))
        if entry.only_b:
            self.blocks = zopeft.discover(self.model)

    def closure(self, method: Any, batch: dict[str, Tensor]) -> zopeft.BatchLoss:
        """Returns what a method's step calls: a packed batch, whose prompts are shared."""
        return zopeft.BatchLoss(self.model, batch, task_loss, "auto")

    def loss(self, groups: Sequence[Mapping[str, Any]]) -> float:
        """Returns the mean loss of rows, as training takes it; inf if not finite."""
        found = mean_loss(self.model, self.tokenizer, self.task, groups, SCORED, LONGEST)
        return found if math.isfinite(found) else math.inf

    def scores(self) -> dict[str, Any]:
        """Returns loss and metric on the validation rows.

        Returns:
            ``loss``; of options ``metric`` (accuracy), ``calibrated`` and ``predicted`` as in
            `calibrated_scores`; of free answers ``metric`` (F1) and ``exact_match``, of the first
            rows alone.
        """
        found = {"loss": self.loss(self.reported)}
        if self.task.kind == "choice":
            matrix = option_matrix(self.model, self.tokenizer, self.task, self.reported)
            return found | calibrated_scores(matrix, self._prior(matrix))
        rows = self.reported[: self.amounts.answers]
        length = self.length + self.task.max_new_tokens
        told = evaluate(self.model, self.tokenizer, self.task, rows, SCORED, length)
        return found | {"metric": told["f1"], "exact_match": told["exact_match"]}

    def _prior(self, matrix: OptionScores) -> OptionScores | None:
        """Returns the options after the last word of their prompts, where no labels are shared."""
        if matrix.labels:
            return None

        def bare(row: Mapping[str, Any]) -> Any:
            example = self.task.build(row)
            return replace(example, prompt=example.prompt.split()[-1])

        return option_matrix(
            self.model, self.tokenizer, replace(self.task, build=bare), self.reported
        )


@torch.inference_mode()
def option_matrix(model: Any, tokenizer: Any, task: Any, rows: Sequence[Any]) -> OptionScores:
    """Returns the log-probability of every option of some rows, [N, C]."""
    feed = Feed(model, tokenizer, task, rows, LONGEST, "choice")
    shape = len(rows), max(len(one.options) for one in feed.data)
    sums = torch.full(shape, -math.inf, dtype=torch.float64)
    tokens = torch.zeros(shape, dtype=torch.float64)
    for chosen, _, batch in feed.batches(SCORED):
        own, counts = option_sums(model, batch)
        sums[chosen, : own.shape[1]] = own.double()
        tokens[chosen, : own.shape[1]] = counts.double()
    texts = [tuple(one.strip() for one in task.example(row).choices) for row in rows]
    return OptionScores(sums, tokens, texts, torch.tensor([one.label for one in feed.data]))


def calibrated_scores(found: OptionScores, prior: OptionScores | None = None) -> dict[str, Any]:
    """Returns accuracy, as it is and with what the prompt alone says of the options taken out.

    Labels that all rows share: from each label's score its mean over the rows is taken (Batch
    Calibration, `zopeft.tasks.scores.calibrated`); of two labels, ``median`` has half of the rows
    predicted for either, by the median margin. Options of each row's own: from each option's
    log-probability that after the bare end of the prompt ("because") is taken, which is
    domain-conditional PMI. No label is looked at.

    Args:
        found: Scores after the prompts.
        prior: Scores of the same options after the bare end; None where labels are shared.

    Returns:
        ``metric``, ``calibrated``; of shared labels ``predicted``, and of two ``median``.

    References:
        Zhao et al., "Calibrate Before Use", 2021; Zhou et al., "Batch Calibration", 2023;
        Holtzman et al., "Surface Form Competition", 2021, equation 2.
    """
    told = choice_scores(found)
    result = {"metric": told["accuracy"]}
    if prior is not None:
        return result | {"calibrated": accuracy(found.sums - prior.sums, found.right)}
    result |= {"calibrated": told["calibrated_accuracy"], "predicted": told["predicted"]}
    if found.sums.shape[1] == 2:
        margin = found.by_token[:, 1] - found.by_token[:, 0]
        # Halfway between the two in the middle, so that neither decides.
        middle = margin.quantile(0.5, interpolation="linear")
        guess = (margin > middle).long()
        result["median"] = float((guess == found.right).double().mean())
    return result
