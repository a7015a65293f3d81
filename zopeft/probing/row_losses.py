"""What each text has of the loss that a causal language model itself returns.

A model gives its loss function logits and labels, and the loss is the mean over labelled tokens.
Each text's part is made of the same logits once more; a model whose loss is more than that mean is
found out by what it returns (`zopeft.probing.examples`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.bare import is_compiled
from zopeft.blocks.peft import base_of
from zopeft.probing.examples import hearing, tell
from zopeft.probing.packed import IGNORED, LAYOUT


@contextmanager
def telling(model: Any, batch: Mapping[str, Any]) -> Iterator[None]:
    """Has a model's loss function tell the losses of texts while somebody listens.

    It does nothing for a compiled model, which would be compiled again for it.

    Args:
        model: The model, with or without an adapter.
        batch: The texts [B, T] that it is about to be run on, once; with a layout or without.
    """
    base: Any = base_of(model)
    own: Any = getattr(base, "loss_function", None)
    settable = isinstance(inspect.getattr_static(type(base), "loss_function", None), property)
    if hearing() is None or not settable or is_compiled(model) or is_compiled(base):
        yield
        return
    before = base.__dict__.get("_loss_function")

    def told(*args: Any, **kwargs: Any) -> Any:
        loss = own(*args, **kwargs)
        named = dict(zip(("logits", "labels"), args, strict=False)) | kwargs
        tell_rows(named.get("logits"), named.get("labels"), batch)
        return loss

    base.loss_function = told
    try:
        yield
    finally:
        if before is None:
            base.__dict__.pop("_loss_function", None)
        else:
            base._loss_function = before


def tell_rows(logits: Any, labels: Any, batch: Mapping[str, Any]) -> None:
    """Tells the losses of texts, if they are what logits and labels are of.

    Args:
        logits: [R, W, V], of a batch or of one of its copies.
        labels: [R, W], -100 where no loss is taken.
        batch: The texts, [B, T].
    """
    ids = batch.get("input_ids")
    if hearing() is None or not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) < 2:
        return
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        return
    owners = owners_of(batch).to(logits.device)
    if logits.dim() != 3 or labels.dim() != 2 or labels.is_floating_point():
        return
    if logits.shape[1] > owners.shape[1]:
        # Virtual tokens stand before the texts: the last of them predicts the first real one.
        owners = torch.cat([owners[:, :1], owners], 1)
        logits, labels = logits[:, -owners.shape[1] :], labels[:, -owners.shape[1] :]
    if logits.shape[:2] != owners.shape or labels.shape != owners.shape:
        return
    sums = torch.zeros(len(ids), device=logits.device)
    counts = torch.zeros_like(sums)
    # Row by row, so that no second copy of all logits is made in 32 bit.
    for row, targets, own in zip(logits, labels.to(logits.device), owners, strict=True):
        losses = torch.nn.functional.cross_entropy(
            row[:-1].float(), targets[1:], ignore_index=IGNORED, reduction="none"
        )
        sums.index_add_(0, own[1:], losses)
        counts.index_add_(0, own[1:], (targets[1:] != IGNORED).float())
    tell(lambda: (sums[None] / counts.clamp(min=1), counts / counts.sum()))


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
