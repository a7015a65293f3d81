"""Packed batches: the texts of a batch in as few tokens as they need.

A padded batch computes padding, and what its texts begin with in common once for each of
them. In a layout (`zopeft.probing.layout`) neither is computed: the losses are the same but for
rounding. A batch keeps its tensors, and has its layout beside them; a loss function that says
which places it needs finds them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks.peft import base_of
from zopeft.probing.layout import Layout, lay_out
from zopeft.probing.mask import FLASH, attention_of, inputs_of, virtual_tokens
from zopeft.probing.rows import Costs

JOINED, PACKED, PADDED = "joined", "packed", "padded"
"""What a run does: rows and what texts begin with are shared, rows alone, or nothing."""
LAYOUT = "layout"
"""Where a batch holds its layout."""
IGNORED = -100
"""The label of a token that no loss is taken on."""
WORTH = 0.95
"""Shared rows are used where they cost less than this part of the padded batch."""
FREE = 2**24
"""Places of a mask that are never too many; more are not to take more memory than the padded
batch's activations."""
UNKNOWN = 1024
"""Hidden size of a model that does not tell its own."""
DOUBLED = {2: 2, 4: 4}
"""Row length at which attention takes as long as all else, in units of the hidden size, by the
bytes of a weight. Measured on one core, models of 32 to 2048 units: 4 to 6 in fp32, 2 in bf16."""
PLAIN = ("input_ids", "attention_mask", "labels")
"""Tensors of a batch of texts alone."""
POSITIONS = "max_position_embeddings"
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
"""Settings of models that say from how many tokens on a text is not seen as a whole."""


def with_layout(
    model: nn.Module | None,
    batch: Mapping[str, Any],
    needed: Tensor | None,
    join: bool,
    trial: bool = False,
) -> dict[str, Any] | None:
    """Returns a batch with its layout, or None where it is to be run as it is.

    Args:
        model: A causal language model that shared rows have been tried out on; None for one
            that nothing is known of.
        batch: ``input_ids`` [B, T], padded on the right where ``attention_mask`` is 0.
        needed: Flat places ``row * T + position`` whose logits are needed, which may be of a
            few rows only; None for all, and all of the batch's own tensors with them.
        join: Whether texts that begin alike may share these tokens.
        trial: Lays out any batch, and with it branches that no logits are needed of, so that a
            trial sees all that later batches may bring.
    """
    texts = texts_of(batch, needed)
    if texts is None or not any(texts) or (needed is None and set(_tensors(batch)) - set(PLAIN)):
        return None
    rows, width = batch["input_ids"].shape
    costs, line = Costs(DOUBLED[4] * UNKNOWN, 1), False
    if model is not None:
        costs, line = costs_of(model), attention_of(model).startswith(FLASH)
        if line and (join or virtual_tokens(model)):
            return None
    given = [*texts, *_branches(texts)] if trial and join else texts
    tried = _tried_costs(model, given) if trial and model is not None else costs
    layout, cost = lay_out(given, width, tried, join, line)
    if not trial and not cost < WORTH * costs.padded(rows, width):
        return None
    if not trial and not line and layout.mask > max(FREE, costs.doubled * rows * width // 2):
        return None
    if len(given) > rows:
        layout = replace(layout, places=layout.places[: rows * width])
    return {**batch, LAYOUT: layout.to(batch["input_ids"].device)}


def laid_out(
    model: nn.Module, batch: Mapping[str, Any], loss_function: Any, way: str
) -> Mapping[str, Any]:
    """Returns a batch in the way that was chosen for its run, with a layout where that saves.

    Args:
        model: The model.
        batch: A padded batch.
        loss_function: A loss function with a method ``needed``, see `BatchLoss`.
        way: "joined", "packed" or "padded" (`zopeft.probing.trial`).
    """
    if way == PADDED:
        return batch
    found = with_layout(model, batch, loss_function.needed(batch), way == JOINED)
    return batch if found is None else found


def texts_of(batch: Mapping[str, Any], needed: Tensor | None) -> list[list[int]] | None:
    """Returns the token ids of each text, as far as they are needed.

    What stands behind the last needed place changes nothing there.

    Returns:
        The texts [B]; None where the batch is not one of texts that begin in the first column.
    """
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not ids.numel():
        return None
    if mask is not None:
        on = mask.bool() if isinstance(mask, Tensor) and mask.shape == ids.shape else None
        if on is None or not bool(on[:, 0].all()) or bool((on[:, 1:] & ~on[:, :-1]).any()):
            return None
    if needed is not None:
        width = ids.shape[1]
        lengths = ids.new_zeros(ids.shape[0])
        lengths.scatter_reduce_(0, needed // width, needed % width + 1, "amax")
    else:
        lengths = ids.new_full((ids.shape[0],), ids.shape[1]) if mask is None else mask.sum(1)
    return [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what ``model(**inputs).loss`` takes of a batch that has a layout.

    It is to be called while the layout is shown (`zopeft.probing.mask.shown`).
    """
    layout = batch[LAYOUT]
    others = {name: value for name, value in batch.items() if name not in (LAYOUT, *PLAIN)}
    inputs = {**others, **inputs_of(model, layout)}
    if batch.get("labels") is not None:
        inputs["labels"] = labels_of(batch, layout)
    return inputs


def labels_of(batch: Mapping[str, Any], layout: Layout) -> Tensor:
    """Returns the labels [R, W] of texts in a layout that shares no tokens.

    The label of each text's first token is -100: what stands before it is another text.
    """
    labels, mask = batch["labels"].clone(), batch.get("attention_mask")
    labels[:, 0] = IGNORED
    flat = torch.full_like(layout.ids, IGNORED).flatten()
    real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    flat[layout.places[real.flatten()]] = labels[real]
    return flat.view_as(layout.ids)


def costs_of(model: nn.Module) -> Costs:
    """Returns what rows cost for a model."""
    limits = limits_of(model, (POSITIONS, *WINDOWS))
    limit = max(1, min(limits) - virtual_tokens(model)) if limits else 0
    exact = getattr(base_of(model), "dtype", torch.float32) == torch.float32
    hidden = getattr(_text_config(model), "hidden_size", None) or UNKNOWN
    return Costs(DOUBLED[4 if exact else 2] * int(hidden), limit)


def _tried_costs(model: nn.Module, texts: Sequence[Sequence[int]]) -> Costs:
    """Costs by which a trial's texts have neighbours, in rows that are no longer than need be."""
    lengths = [len(text) for text in texts if text]
    limits = [limit - virtual_tokens(model) for limit in limits_of(model, (POSITIONS,))]
    return Costs(2**31, max(1, min([max(lengths) + min(lengths), *limits])))


def limits_of(model: nn.Module, names: Sequence[str]) -> list[int]:
    """Returns those of some settings that a model has, in tokens."""
    found = (getattr(_text_config(model), name, None) for name in names)
    return [int(one) for one in found if isinstance(one, int) and one > 0]


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(base_of(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tensors(batch: Mapping[str, Any]) -> list[str]:
    """The names of what a batch holds beside plain values."""
    return [n for n, v in batch.items() if not isinstance(v, (bool, int, float, str, type(None)))]


def _branches(texts: list[list[int]]) -> list[list[int]]:
    """Texts that begin as those of a batch and go on in another way, before them in a tree."""
    return [[*text[: (len(text) + 1) // 2], 0, 0] for text in texts if text]
