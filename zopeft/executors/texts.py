"""What of a batch a server of texts is asked for, and the loss from its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.probing.closure import Closure
from zopeft.probing.model_loss import ModelLoss
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.loss import TaskLoss

WHERE = "executor"


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a batch, without padding, and which of their tokens are learned.

    Attributes:
        prompts: Token numbers of each text, [R].
        learned: Places of the learned tokens in each text, from 1, [R].
    """

    prompts: list[list[int]]
    learned: list[list[int]]

    def loss(self, scores: Sequence[Sequence[float]]) -> float:
        """Returns the mean of ``-log p(token)`` over the learned tokens.

        Args:
            scores: Log-probability of each text's tokens from the second one on, [R].
        """
        pairs = zip(scores, self.learned, strict=True)
        picked = [own[place - 1] for own, places in pairs for place in places]
        return -sum(picked) / len(picked)


def texts_of(closure: Closure, longest: int | None = None) -> Texts:
    """Returns what is to be asked for to have a closure's loss.

    Args:
        closure: A `zopeft.BatchLoss` of a model's own loss, or of a task's answers.
        longest: Tokens of the longest text that is taken; None for any.

    Raises:
        InputError: Its loss is another one, or a text is too long.
    """
    batch = getattr(closure, "batch", None)
    if batch is None or not _of_tokens(getattr(closure, "loss_function", None), batch):
        do = "use a zopeft.BatchLoss of labels, or --objective answer, or leave the executor out"
        raise input_error(WHERE, "serves the loss of labelled tokens alone", None, do)
    ids, labels = batch["input_ids"], batch["labels"]
    mask = batch.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    prompts, learned = [], []
    for row in range(len(ids)):
        own = real[row].nonzero().flatten()
        targets = _targets(labels[row], own)
        if not bool((labels[row, own][targets] == ids[row, own][targets]).all()):
            do = "label tokens with themselves, or leave the executor out"
            raise input_error(WHERE, "a label is another token than the text's", None, do)
        if longest is not None and len(own) >= longest:
            do = "lower task.max_length, or start the server with a larger --max-model-len"
            raise input_error(WHERE, f"takes texts of less than {longest} tokens", len(own), do)
        if targets:
            prompts.append(ids[row, own].tolist())
            learned.append(targets)
    if not prompts:
        raise input_error(WHERE, "a batch has no labelled token", None, "give it labels")
    return Texts(prompts, learned)


def _targets(labels: Tensor, own: Tensor) -> list[int]:
    """Returns the places among a row's real tokens whose labels are learned."""
    places = (labels[own] != IGNORED).nonzero().flatten().tolist()
    # The first token of a row is learned by nobody; after padding it would be by a padded place.
    if places and places[0] == 0:
        if int(own[0]) > 0:
            do = "pad on the right, or do not label it"
            raise input_error(WHERE, "the first token after padding is labelled", None, do)
        places = places[1:]
    return places


def _of_tokens(loss: Any, batch: Any) -> bool:
    """Whether a loss is the mean over the labelled tokens of a batch."""
    while hasattr(loss, "own_loss"):
        loss = loss.own_loss
    named = "labels" in batch and "input_ids" in batch and "option_table" not in batch
    return named and type(loss) in (ModelLoss, TaskLoss)
