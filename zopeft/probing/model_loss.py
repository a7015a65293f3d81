"""The loss that a causal language model itself returns, also of copies and parts of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.peft import base_of
from zopeft.engine.carrier import UnstackableError
from zopeft.probing.mask import check_copies, predicts_first, shown
from zopeft.probing.packed import IGNORED, LAYOUT, model_inputs
from zopeft.probing.row_losses import tell_rows, telling

BY_ROW = ("input_ids", "attention_mask", "labels", "position_ids", "token_type_ids")
"""Tensors of a batch that hold one row for each of its texts."""


class ModelLoss:
    """The loss that a causal language model itself returns: ``model(**batch).loss``."""

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch."""
        with as_inputs(model, batch) as inputs, telling(model, batch):
            loss: Tensor = model(**inputs).loss
        return loss

    def needed(self, batch: Mapping[str, Any]) -> None:
        """Says that the logits of all places are needed, for `BatchLoss`."""

    def stacked(self, model: Any, batch: Mapping[str, Any], count: int) -> Tensor:
        """Returns the losses [count] of copies of a batch, from one forward.

        The model's own loss function is given the logits of one copy at a time.

        Raises:
            UnstackableError: The batch holds more than rows of texts, or the model's loss is
                made of more than its loss function's.
        """
        with as_inputs(model, batch, count) as inputs:
            return torch.stack(self._of_parts(model, inputs, count, batch))

    def grouped(self, model: Any, batch: Mapping[str, Any], count: int, only: int | None) -> Tensor:
        """Returns the losses of groups of a batch's rows, see `BatchLoss.grouped`.

        A group's part is that of its tokens, as the model's loss is their mean.

        Raises:
            UnstackableError: As `stacked` does.
        """
        labels = batch["labels"]
        first = 0 if predicts_first(model) else 1
        predicted = (labels[:, first:] != IGNORED).sum(1)
        shares = [count * predicted[k::count].sum() / predicted.sum() for k in range(count)]
        if batch.get("num_items_in_batch") is not None:
            # The model divides by that number itself.
            shares = [torch.where(share > 0, count, 0) for share in shares]
        if only is not None:
            if not shares[only]:
                return torch.zeros((), device=labels.device)
            chosen = torch.arange(only, len(labels), count, device=labels.device)
            loss: Tensor = model(**rows_of(batch, chosen)).loss
            return loss * shares[only]
        chosen, real = in_groups(len(labels), count, labels.device)
        arranged = rows_of(batch, chosen)
        arranged["labels"] = arranged["labels"].masked_fill(~real.unsqueeze(1), IGNORED)
        losses = self._of_parts(model, arranged, count)
        parts = zip(losses, shares, strict=True)
        return torch.stack([loss * share if share else share for loss, share in parts])

    def _of_parts(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        count: int,
        copied: Mapping[str, Any] | None = None,
    ) -> list[Tensor]:
        """Returns the loss of each of `count` equal parts of a batch, from one forward.

        Args:
            model: The model.
            inputs: What it is given.
            count: Number of parts.
            copied: The batch that each part is a copy of; None where they are no copies.
        """
        with _apart(base_of(model), count, copied) as losses:
            output = model(**inputs)
        found = output["loss"] if isinstance(output, dict) else output[0]
        # Some models add to the loss in place, which its version tells.
        if len(losses) != count + 1 or found is not losses[-1] or found._version:
            raise UnstackableError("the model's loss is more than its loss function's", True)
        return losses[:-1]


@contextmanager
def as_inputs(model: Any, batch: Mapping[str, Any], count: int = 1) -> Iterator[Mapping[str, Any]]:
    """Yields what ``model(**inputs).loss`` takes of copies of a batch, which may have a layout.

    Raises:
        UnstackableError: The batch cannot be copied.
    """
    layout = batch.get(LAYOUT)
    if layout is None:
        yield batch if count == 1 else repeated(batch, count)
        return
    inputs = model_inputs(model, batch)
    check_copies(model, count)
    with shown(model, layout.copies(count)):
        yield inputs if count == 1 else repeated(inputs, count)


def in_groups(rows: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns rows in the order of their groups, row i of group i mod count, padded to equal parts.

    Args:
        rows: Number of rows.
        count: Number of groups, K.
        device: Where the numbers are to be.

    Returns:
        int64 [K n], row numbers; and bool [K n], whether a row is no filling.
    """
    each = -(-rows // count)
    numbers = torch.arange(count, device=device).unsqueeze(1) + count * torch.arange(
        each, device=device
    )
    real = (numbers < rows).flatten()
    return torch.where(real, numbers.flatten(), 0), real


def rows_of(batch: Mapping[str, Any], chosen: Tensor) -> dict[str, Any]:
    """Returns some rows of a batch.

    Args:
        batch: Tensors of one row a text, and single values.
        chosen: Row numbers, int64 [n].

    Raises:
        UnstackableError: The batch holds other tensors than one row a text.
    """
    return {
        name: value[chosen] if isinstance(value, Tensor) else value
        for name, value in repeated(batch, 1).items()
    }


def repeated(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns the batch's rows, `count` times one below the other.

    Raises:
        UnstackableError: The batch holds other tensors than one row a text.
    """
    rows = batch["input_ids"].shape[0]
    copies: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            if name not in BY_ROW or value.dim() != 2 or value.shape[0] != rows:
                raise UnstackableError(f"{name!r} does not have one row for each text", False)
            value = value.repeat(count, 1)
        elif not isinstance(value, (bool, int, float, str, type(None))):
            raise UnstackableError(f"{name!r} is neither a tensor nor a single value", False)
        copies[name] = value
    return copies


@contextmanager
def _apart(
    base: Any, count: int, copied: Mapping[str, Any] | None = None
) -> Iterator[list[Tensor]]:
    """Has a model's loss function called for one copy at a time; yields losses and mean."""
    own = getattr(base, "loss_function", None)
    if own is None or not hasattr(type(base), "loss_function"):
        raise UnstackableError("the model has no loss function of its own", True)
    losses: list[Tensor] = []
    rows = 0

    def part(value: Any, copy: int) -> Any:
        whole = isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == rows
        return value.chunk(count)[copy] if whole else value

    def apart(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal rows
        rows = logits.shape[0]
        for copy in range(count):
            given = [part(value, copy) for value in (logits, labels, *args)]
            named = {name: part(value, copy) for name, value in kwargs.items()}
            losses.append(own(*given, **named))
            if copied is not None:
                tell_rows(given[0], given[1], copied)
        losses.append(torch.stack(losses).mean())
        return losses[-1]

    before = base.__dict__.get("_loss_function")
    base.loss_function = apart
    try:
        yield losses
    finally:
        if before is None:
            del base._loss_function
        else:
            base._loss_function = before
