"""Packed batches for a plain ``model(**batch).loss``: transformers' own masks of packed rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.probing.layout import Layout
from zopeft.probing.mask import attention_of, virtual_tokens
from zopeft.probing.packed import LAYOUT, PADDED, PLAIN, WINDOWS, labels_of, limits_of, with_layout
from zopeft.probing.trial import known_choice

logger = logging.getLogger(__name__)


def packed(batch: Mapping[str, Any], model: nn.Module | None = None) -> dict[str, Any]:
    """Returns a batch without padding: texts share rows, and ``model(**batch).loss`` is the same.

    Position ids begin at 0 with each text, by which transformers keeps texts apart where no
    ``attention_mask`` is given and nothing is cached; the label of each text's first token is
    -100::

        for batch in loader:
            batch = zopeft.packed(batch, model)
            optimizer.step(lambda: model(**batch).loss)

    (`zopeft.BatchLoss` with ``layout="auto"`` does the same, and runs probes together where that
    saves.)

    Args:
        batch: ``input_ids``, ``labels`` and ``attention_mask`` [B, T], padded on the right.
        model: The model that it is for. It is tried out with the first batch, whose loss is
            taken both ways: for a model that does not keep texts apart (a recurrent one, or one
            with a prefix or a trained prompt), batches are returned as they are. Without it,
            nothing is tried, and rows are at most as long as the longest text.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels`` [R, W], ``use_cache`` (False), and what else
        was in the batch; the batch as it is where it holds more than texts, or nothing is saved.
    """
    masked: str | None = None
    if model is not None:
        choice = known_choice(model, batch, PlainLoss(), "auto")
        if choice.way == PADDED:
            masked = attention_of(model)
            choice = known_choice(model, batch, MaskedLoss(), "auto")
        if choice.way == PADDED:
            logger.info("batches are left padded: %s", choice.reason)
            return dict(batch)
    laid = with_layout(model, batch, None, False)
    return dict(batch) if laid is None else plain_inputs(laid, masked)


def plain_inputs(batch: Mapping[str, Any], masked: str | None = None) -> dict[str, Any]:
    """Returns a batch that has a layout as a model takes it.

    Args:
        batch: The batch.
        masked: Name of the attention, for a model that is to be given its mask; None for one
            that makes its masks by positions.
    """
    layout = batch[LAYOUT]
    inputs = {name: value for name, value in batch.items() if name not in (LAYOUT, *PLAIN)}
    # With a cache, transformers would not look at the positions for where texts begin.
    inputs |= {"input_ids": layout.ids, "position_ids": layout.positions, "use_cache": False}
    if batch.get("labels") is not None:
        inputs["labels"] = labels_of(batch, layout)
    if masked is not None:
        inputs["attention_mask"] = whole_mask(layout, masked)
    return inputs


def whole_mask(layout: Layout, attention: str) -> Tensor:
    """Returns what each token sees, [R, 1, W, W]: as it is added to scores for "eager"."""
    place = torch.arange(layout.ids.shape[1], device=layout.ids.device)
    query, key = place[:, None], place[None, :]
    inside = (key <= query) & (query < layout.ends[:, None, :])
    if attention == "eager":
        hidden = torch.finfo(torch.get_default_dtype()).min
        return torch.zeros(inside.shape, device=inside.device).masked_fill(~inside, hidden)[:, None]
    return inside[:, None]


class PlainLoss:
    """``model(**batch).loss``, of batches that may have a layout."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch."""
        inputs = self.inputs(model, batch) if LAYOUT in batch else batch
        loss: Tensor = model(**inputs).loss
        return loss

    def inputs(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model is given.

        Raises:
            ValueError: PEFT would leave out the position ids.
        """
        if virtual_tokens(model):
            raise ValueError("PEFT gives no positions to a model with virtual tokens")
        return plain_inputs(batch)

    def needed(self, batch: Mapping[str, Any]) -> None:
        """Says that the logits of all places are needed."""


class MaskedLoss(PlainLoss):
    """As `PlainLoss`, for a model that is given its mask: right where no layer has a window."""

    def inputs(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model is given.

        Raises:
            ValueError: Its layers, or its attention, need more than one mask of scores.
        """
        if attention_of(model) not in ("sdpa", "eager") or limits_of(model, WINDOWS):
            raise ValueError("it needs a mask for each kind of layer")
        return super().inputs(model, batch) | plain_inputs(batch, attention_of(model))
