"""The loss of one batch as a closure, which can also be taken for several probes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.bare import COMPILED
from zopeft.blocks.peft import base_of
from zopeft.engine.copies import UnstackableError
from zopeft.probing.mask import check_copies, shown
from zopeft.probing.packed import LAYOUT, PADDED, laid_out, model_inputs
from zopeft.probing.trial import known_choice

BY_ROW = ("input_ids", "attention_mask", "labels", "position_ids", "token_type_ids")
"""Tensors of a batch that hold one row for each of its texts."""


class BatchLoss:
    """A closure for `ZerothOrder.step` that can run several probes in one forward.

    Called, it returns the batch's loss, as any closure does. ``stacked(count)`` runs the
    model once on the batch repeated ``count`` times, and returns the loss of each copy; any
    object with these two and ``tokens`` may stand in its place::

        for batch in loader:
            optimizer.step(zopeft.BatchLoss(model, batch))

    Args:
        model: The model.
        batch: Named tensors on the model's device, as ``model(**batch)`` takes them.
        loss_function: Called with model and batch, returns the loss as a 0-dim tensor;
            None for ``model(**batch).loss``. It can be stacked if it has a method
            ``stacked(model, batch, count)`` that returns the losses of the copies, [count].
            It can be packed if it has a method ``needed(batch)`` that returns the flat places
            ``row * T + position`` whose logits it reads (None for all), and if it finds them
            by the batch's ``layout``, as `zopeft.tasks.logits.narrow_logits` does.
        layout: "padded" runs the batch as it is. "packed" has its texts share rows, and what
            they begin with where the loss allows it: no padding is computed, and the loss is
            the same but for rounding. "auto" packs where the model can be packed, which its
            first batch tells (`zopeft.probing.trial`).

    Raises:
        InputError: `layout` is unknown, or "packed" for what cannot be packed.
    """

    def __init__(
        self,
        model: Any,
        batch: Mapping[str, Any],
        loss_function: Callable[[Any, Any], Tensor] | None = None,
        layout: str = PADDED,
    ) -> None:
        self.model = model
        self.loss_function = ModelLoss() if loss_function is None else loss_function
        way = known_choice(model, batch, self.loss_function, layout).way
        self.batch = laid_out(model, batch, self.loss_function, way)

    def __call__(self) -> Tensor:
        """Returns the loss of the batch, 0-dim."""
        return self.loss_function(self.model, self.batch)

    @property
    def tokens(self) -> int:
        """Tokens of one forward, with padding; 0 where the batch has no ids."""
        layout = self.batch.get(LAYOUT)
        ids = self.batch.get("input_ids") if layout is None else layout.ids
        return ids.numel() if isinstance(ids, Tensor) else 0

    def stacked(self, count: int) -> Tensor:
        """Returns the losses [count] of as many copies of the batch, from one forward.

        Args:
            count: Number of copies, the P of `zopeft.engine.Engine.stacked`.

        Raises:
            UnstackableError: This batch or its loss function cannot be run so.
        """
        stacked = getattr(self.loss_function, "stacked", None)
        if stacked is None or not self.tokens:
            raise UnstackableError("the loss function is for one batch at a time", False)
        if runs_compiled(self):
            raise UnstackableError("the model is compiled, and would be so at every step", True)
        losses: Tensor = stacked(self.model, self.batch, count)
        return losses


def runs_compiled(closure: Any) -> bool:
    """Says whether a closure is known to run a compiled model, its attribute ``model``."""
    model = getattr(closure, "model", None)
    return hasattr(model, COMPILED) or getattr(model, "_compiled_call_impl", None) is not None


class ModelLoss:
    """The loss that a causal language model itself returns: ``model(**batch).loss``."""

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch."""
        with as_inputs(model, batch) as inputs:
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
        with as_inputs(model, batch, count) as inputs, _apart(base_of(model), count) as losses:
            output = model(**inputs)
        found = output["loss"] if isinstance(output, dict) else output[0]
        # Some models add to the loss in place, which its version tells.
        if len(losses) != count + 1 or found is not losses[-1] or found._version:
            raise UnstackableError("the model's loss is more than its loss function's", True)
        return torch.stack(losses[:-1])


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
def _apart(base: Any, count: int) -> Iterator[list[Tensor]]:
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
