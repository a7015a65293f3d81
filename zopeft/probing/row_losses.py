"""What each text has of the loss that a causal language model itself returns.

A model gives its loss function logits and labels, and the loss is the mean over labelled tokens.
Where that is so, which is looked at, each text's part is made of the same logits once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zopeft.probing.examples import heard, tell
from zopeft.probing.packed import IGNORED, LAYOUT

NEAR = 1e-3
"""How far, as a part of it, the loss may be from the mean over tokens that it is taken for."""


@contextmanager
def telling(base: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Has a model's loss function tell the losses of texts while somebody listens.

    Args:
        base: The model, whose class has a ``loss_function`` if it can be told.
        batch: The texts [B, T] that it is about to be run on, once; with a layout or without.
    """
    own = getattr(base, "loss_function", None)
    if not heard() or own is None or not hasattr(type(base), "loss_function"):
        yield
        return
    before = base.__dict__.get("_loss_function")

    def told(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = own(logits, labels, *args, **kwargs)
        tell_rows(loss, logits, labels, owners_of(batch), len(batch["input_ids"]))
        return loss

    base.loss_function = told
    try:
        yield
    finally:
        if before is None:
            del base._loss_function
        else:
            base._loss_function = before


def owners_of(batch: Mapping[str, Any]) -> Tensor:
    """Returns the number of the text that each token of the model's batch is of, [R, W]."""
    ids, layout = batch["input_ids"], batch.get(LAYOUT)
    numbers = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    if layout is None:
        return numbers
    mask = batch.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    owners = torch.zeros_like(layout.ids).flatten()
    owners[layout.places[real.flatten()]] = numbers[real]
    return owners.view_as(layout.ids)


def tell_rows(loss: Tensor, logits: Tensor, labels: Tensor, owners: Tensor, count: int) -> None:
    """Tells the losses of texts, if they make the loss.

    Args:
        loss: What the model makes of them, 0-dim.
        logits: [R, W, V].
        labels: [R, W], -100 where no loss is taken.
        owners: Which text a token is of, [R, W].
        count: Texts, B.
    """
    if logits.shape[:2] != labels.shape or labels.shape != owners.shape:
        return
    sums = torch.zeros(count, device=logits.device)
    counts = torch.zeros_like(sums)
    # Row by row, so that no second copy of all logits is made in 32 bit.
    for row, targets, own in zip(logits, labels.to(logits.device), owners, strict=True):
        real = targets[1:] != IGNORED
        losses = torch.nn.functional.cross_entropy(
            row[:-1][real].float(), targets[1:][real], reduction="none"
        )
        places = own.to(logits.device)[1:][real]
        sums.index_add_(0, places, losses)
        counts.index_add_(0, places, torch.ones_like(losses))
    total = counts.sum()
    if abs(float(sums.sum() / total - loss)) <= NEAR * abs(float(loss)):
        tell(lambda: (sums[None] / counts.clamp(min=1), counts / total))
