"""Loss: cross-entropy over answer tokens or over the scores of options.

Log-probabilities are taken in float32, of the logits that `zopeft.tasks.logits` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.probing.examples import tell
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.logits import narrow_logits


class TaskLoss:
    """The loss of a batch that `Collator` made.

    "answer" batches: the mean of ``-log p(token)`` over all answer tokens, which is what
    ``model(**batch).loss`` returns. "choice" batches: the mean over examples of the
    cross-entropy over options, the score of an option being the mean log-probability of
    its tokens (MeZO's length normalisation).

    References:
        Fine-Tuning Language Models with Just Forward Passes (Malladi et al. 2023),
        appendix E.2.
    """

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch.

        Args:
            model: A causal language model, with or without a PEFT adapter.
            batch: A batch on the model's device.

        Returns:
            The loss, a float32 scalar. Runs under autograd as well as without.
        """
        return self.stacked(model, batch, 1)[0]

    def stacked(self, model: Any, batch: Mapping[str, Any], count: int) -> Tensor:
        """Runs the model once on copies of a batch and returns the loss of each.

        Args:
            model: A causal language model, whose layers may treat each copy in another way.
            batch: A batch on the model's device.
            count: Number of copies P, one below the other along the rows.

        Returns:
            float32 [P].
        """
        choice, places = "option_table" in batch, self.needed(batch)
        logits = narrow_logits(model, batch, places, count)
        copies = logits.unflatten(0, (count, len(places)))
        if not choice:
            tokens = [token_losses(copy, batch) for copy in copies]
            tell(lambda: _by_row(tokens, batch))
            return torch.stack([own.mean() for own in tokens])
        right = batch["option_label"]
        scores = [scores_of(copy, batch) for copy in copies]
        tell(lambda: _by_example(scores, right))
        return torch.stack([torch.nn.functional.cross_entropy(one, right) for one in scores])

    def needed(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the flat places [U] whose logits are read, see `zopeft.BatchLoss`."""
        if "option_table" not in batch:
            return answer_places(batch)[0]
        places: Tensor = batch["predictors"]
        return places

    def grouped(
        self, model: Any, batch: Mapping[str, Tensor], count: int, only: int | None
    ) -> Tensor:
        """Returns the losses of groups of a batch's examples (`zopeft.tasks.groups`)."""
        from zopeft.tasks.groups import group_losses

        return group_losses(model, batch, count, only)


task_loss = TaskLoss()
"""The loss that tasks are trained with; a function of model and batch."""


def option_scores(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Returns the length-normalised log-probability of every option.

    Args:
        model: A causal language model.
        batch: A "choice" batch.

    Returns:
        float32 [B, C]; -inf where an example has fewer than C options.
    """
    return scores_of(narrow_logits(model, batch, batch["predictors"]), batch)


def scores_of(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns the scores of options [B, C] from logits [U, V] at a "choice" batch's places."""
    sums, counts = _totals(logits, batch)
    return _tabled(sums / counts.clamp(min=1), batch)


def option_sums(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of every option, not divided by anything, and its tokens.

    Args:
        model: A causal language model.
        batch: A "choice" batch.

    Returns:
        float32 [B, C], -inf where an example has fewer than C options; and numbers of tokens.
    """
    sums, counts = _totals(narrow_logits(model, batch, batch["predictors"]), batch)
    return _tabled(sums, batch), counts[batch["option_table"]]


def _totals(logits: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the log-probability and the tokens of each option, and a place for missing ones."""
    slot, option = batch["target_predictor"], batch["target_option"]
    picked = logits[slot, batch["target_token"]] - logits.logsumexp(-1)[slot]
    # One place more than there can be options, for those that are missing.
    zeros = picked.new_zeros(batch["option_table"].numel() + 1)
    sums = zeros.index_add(0, option, picked)
    return sums, zeros.index_add(0, option, torch.ones_like(picked))


def _tabled(values: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns the values of options as rows of examples [B, C], -inf where there is no option."""
    table = batch["option_table"]
    present = torch.arange(table.shape[1], device=table.device) < batch["num_options"][:, None]
    return torch.where(present, values[table], float("-inf"))


def counted(batch: Mapping[str, Any]) -> int:
    """Returns how many answer tokens, or examples with options, a batch's loss is the mean of."""
    if "option_table" in batch:
        return len(batch["option_label"])
    return len(answer_places(batch)[0])


def _by_row(tokens: Sequence[Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the mean losses [P, B] of rows' answer tokens [P][M], and their parts of all [B]."""
    rows = answer_places(batch)[1]
    zeros = tokens[0].new_zeros(len(batch["labels"]))
    counts = zeros.index_add(0, rows, torch.ones_like(tokens[0]))
    sums = torch.stack([zeros.index_add(0, rows, own) for own in tokens])
    return sums / counts.clamp(min=1), counts / counts.sum()


def _by_example(scores: Sequence[Tensor], right: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the losses [P, B] of examples with options, and their parts of all [B]."""
    losses = [torch.nn.functional.cross_entropy(one, right, reduction="none") for one in scores]
    return torch.stack(losses), losses[0].new_full((len(right),), 1.0 / len(right))


def answer_losses(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns ``-log p(token)`` of every answer token and the row it is in.

    Args:
        model: A causal language model.
        batch: A batch with ``input_ids`` and ``labels`` [R, T].

    Returns:
        float32 [M] and row numbers [M], in reading order.
    """
    places, rows = answer_places(batch)
    return token_losses(narrow_logits(model, batch, places), batch), rows


def answer_places(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the flat places [M] that predict the answer tokens, and their rows [M]."""
    labels = batch["labels"]
    rows, positions = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + positions, rows


def token_losses(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns ``-log p(token)`` [M] of the answer tokens from logits [M, V] at their places."""
    following = batch["labels"][:, 1:]
    targets = following[following != IGNORED]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
