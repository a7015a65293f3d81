"""The losses of groups of a batch's examples, each group's rows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.engine.carrier import UnstackableError
from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import answer_places, scores_of, token_losses
from zopeft.tasks.neighbours import apart


def group_losses(
    model: Any, batch: Mapping[str, Tensor], count: int, only: int | None = None
) -> Tensor:
    """Returns ``K / B`` times the sum of the losses of each group's examples.

    Example i is of group i mod K, with all of its rows. (Of "answer" batches, B is the number of
    answer tokens, over which their loss is the mean.) Their mean is the loss of the batch.

    Args:
        model: A causal language model.
        batch: A batch that `zopeft.tasks.dataset.Collator` made, on the model's device.
        count: K.
        only: One group, whose rows alone are run; None for all in one forward, in K equal parts.

    Returns:
        float32 [K], or 0-dim for one group.

    Raises:
        UnstackableError: All are wanted of a model whose rows are run by their lengths.
    """
    choice = "option_table" in batch
    places, answered = (batch["predictors"], None) if choice else answer_places(batch)
    groups = _groups(batch, count)
    if only is not None and not bool((groups == only).any()):
        return torch.zeros((), device=places.device)
    logits = _logits(model, batch, places, groups, range(count) if only is None else [only])
    if answered is None:
        scores, right = scores_of(logits, batch), batch["option_label"]
        losses = torch.nn.functional.cross_entropy(scores, right, reduction="none")
        own = torch.arange(len(right), device=right.device) % count
    else:
        losses, own = token_losses(logits, batch), groups[answered]
    sums = losses.new_zeros(count).index_add(0, own, losses) * (count / len(losses))
    return sums if only is None else sums[only]


def _groups(batch: Mapping[str, Tensor], count: int) -> Tensor:
    """The group of every row, int64 [R]."""
    ids = batch["input_ids"]
    example = torch.arange(len(ids), device=ids.device)
    if "option_table" in batch:
        options = batch["num_options"]
        owner = torch.arange(len(options), device=ids.device).repeat_interleave(options)
        rows = batch["predictors"][batch["target_predictor"]] // ids.shape[1]
        example = example.scatter(0, rows, owner[batch["target_option"]])
    return example % count


def _logits(
    model: Any,
    batch: Mapping[str, Tensor],
    places: Tensor,
    groups: Tensor,
    wanted: Sequence[int],
) -> Tensor:
    """Returns float32 logits [U, V] at places [U]; those of groups that are not wanted are 0."""
    length, rows = batch["input_ids"].shape[1], places // batch["input_ids"].shape[1]
    members = [(groups == group).nonzero().flatten() for group in wanted]
    seen = [(groups[rows] == group).nonzero().flatten() for group in wanted]
    height, width = max(map(len, members)), max(map(len, seen))
    chosen, asked = [], []
    for part, (own, its) in enumerate(zip(members, seen, strict=True)):
        # Parts must be of one size: the rest is rows and places that nothing is read from.
        chosen.append(torch.cat([own, own.new_zeros(height - len(own))]))
        number = torch.zeros_like(groups).scatter(
            0, own, torch.arange(part * height, part * height + len(own), device=own.device)
        )
        at = number[rows[its]] * length + places[its] % length
        asked.append(torch.cat([at, at.new_full((width - len(at),), part * height * length)]))
    some = {name: batch[name][torch.cat(chosen)] for name in ("input_ids", "attention_mask")}
    if len(wanted) > 1 and apart(model, "right", length):
        raise UnstackableError("the model looks at padding", False)
    found = narrow_logits(model, some, torch.cat(asked)).unflatten(0, (len(wanted), width))
    logits = found.new_zeros(len(places), found.shape[-1])
    for own, its in zip(found, seen, strict=True):
        logits[its] = own[: len(its)]
    return logits
