"""Logits: what a model says at the places that a loss reads, and nowhere else.

The logits of a long vocabulary are by far the largest tensor of a forward. They are
computed only where a token is predicted that the loss needs: the input of the output
layer is narrowed to those places, so nothing of shape [R, T, V] ever exists, whatever
the model's class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.offloaded import device_of
from zopeft.probing.layout import Layout
from zopeft.probing.mask import check_copies, inputs_of, shown
from zopeft.probing.packed import LAYOUT
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.neighbours import apart, by_length, try_out
from zopeft.tasks.one_forward import kept

LAST = 8
"""Tokens of a short text whose logits are compared with and without padding behind it."""


def narrow_logits(model: Any, batch: Mapping[str, Any], places: Tensor, count: int = 1) -> Tensor:
    """Runs the model and returns its logits at some places.

    A model that is known to look at padding (`try_padding`) is given the rows of one length
    at a time, without any.

    Args:
        model: A causal language model.
        batch: ``input_ids`` and ``attention_mask`` [R, T]; with a ``layout``
            (`zopeft.probing.layout`), its rows are run instead.
        places: Flat places ``row * T + position`` [U].
        count: Number of copies P of the batch to run, one below the other.

    Returns:
        float32 logits [P U, V].
    """
    return kept(model, batch, places, count, lambda: _run(model, batch, places, count))


def _run(model: Any, batch: Mapping[str, Any], places: Tensor, count: int) -> Tensor:
    layout = batch.get(LAYOUT)
    if layout is not None:
        return _in_layout(model, layout, layout.places[places], count)
    ids, mask, real = batch["input_ids"], _mask(batch), batch.get("attention_mask")
    if mask is None and real is not None and apart(model, "right", ids.shape[1]):
        return _by_length(model, ids, real, places, count)
    return _narrow(model, ids, mask, places, count)


def _by_length(model: Any, ids: Tensor, mask: Tensor, places: Tensor, count: int) -> Tensor:
    """`narrow_logits`, in a forward for each length that a row has."""
    rows, at = places // ids.shape[1], places % ids.shape[1]
    logits: Tensor | None = None
    for group in by_length(mask.sum(1).tolist()):
        chosen = torch.tensor(group, device=ids.device)
        inside = torch.isin(rows, chosen)
        if not bool(inside.any()):
            continue
        length = int(mask[group[0]].sum())
        number = torch.empty_like(ids[:, 0]).scatter_(
            0, chosen, torch.arange(len(group), device=ids.device)
        )
        local = number[rows[inside]] * length + at[inside]
        found = _narrow(model, ids[chosen, :length], None, local, count).unflatten(0, (count, -1))
        if logits is None:
            logits = found.new_empty(count, len(places), found.shape[-1])
        logits[:, inside] = found
    assert logits is not None
    return logits.flatten(0, 1)


def _in_layout(model: Any, layout: Layout, places: Tensor, count: int) -> Tensor:
    """One forward of `count` copies of shared rows, and its logits [P U, V] at places [U]."""
    check_copies(model, count)
    places = _copied(places, layout.ids.numel(), count)
    rows = layout.copies(count)
    with shown(model, rows):
        return _forward(model, inputs_of(model, rows), places)


def _narrow(model: Any, ids: Tensor, mask: Tensor | None, places: Tensor, count: int) -> Tensor:
    """One forward of `count` copies of rows [R, T], and its logits [P U, V] at places [U]."""
    places = _copied(places, ids.numel(), count)
    if count > 1:
        ids, mask = ids.repeat(count, 1), None if mask is None else mask.repeat(count, 1)
    return _forward(model, {"input_ids": ids, "attention_mask": mask}, places)


def _copied(places: Tensor, size: int, count: int) -> Tensor:
    """The places [U] in each of `count` copies of as many tokens."""
    if count == 1:
        return places
    return torch.cat([places + copy * size for copy in range(count)])


def _forward(model: Any, inputs: dict[str, Any], places: Tensor) -> Tensor:
    """One forward, and its logits [U, V] at places of its tokens."""
    narrowed = []
    length = inputs["input_ids"].shape[1]

    def narrow(hidden: Tensor) -> Tensor:
        # Prompt tuning puts its vectors before the text: the text is at the end.
        hidden = hidden[:, hidden.shape[1] - length :]
        return hidden.flatten(0, 1)[places.to(hidden.device)]

    def before_head(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs[0].dim() != 3:
            return inputs
        narrowed.append(True)
        return (narrow(inputs[0]).unsqueeze(0), *inputs[1:])

    bare = model if hasattr(model, "get_output_embeddings") else model.module  # DDP
    head = bare.get_output_embeddings()
    hook = head.register_forward_pre_hook(before_head) if head is not None else None
    try:
        output = model(**inputs, use_cache=False)
    finally:
        if hook is not None:
            hook.remove()
    logits: Tensor = output.logits
    return (logits[0] if narrowed else narrow(logits)).float()


def try_padding(model: Any, examples: Sequence[Encoded], pad: int) -> None:
    """Tries out whether losses of a model depend on the padding of a batch.

    Called once before a model is trained or scored on examples, outside of any probe. What
    is found is remembered for the model, and `narrow_logits` goes by it.

    Args:
        model: A causal language model, with or without a PEFT adapter.
        examples: The examples to come; only the longest is run.
        pad: The id that fills their batches.
    """
    texts = [text for example in examples for text in example.texts]
    if len({len(text) for text in texts}) < 2:
        return
    longest = max(texts, key=len)

    def last_logits(rows: Sequence[Sequence[int]]) -> list[Tensor]:
        size = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (size - len(row))] for row in rows])
        places = torch.arange(max(0, len(rows[0]) - LAST), len(rows[0]))
        ids, places = ids.to(device_of(model)), places.to(device_of(model))
        return [_narrow(model, ids, None, places, 1)[None]]

    training = model.training
    model.eval()
    try:
        # Not inference mode: what a layer keeps of its first forward may be trained through.
        with torch.no_grad():
            try_out(model, "right", longest, len(longest), last_logits)
    finally:
        model.train(training)


def _mask(batch: Mapping[str, Any]) -> Tensor | None:
    """The attention mask, or None where it can change nothing.

    With all padding on the right, a causal model never looks at it from a token that
    counts (`try_padding` finds those that do); without a mask, attention takes its faster
    path.
    """
    mask = batch.get("attention_mask")
    if mask is None or bool(mask[:, 0].all()):
        return None
    return mask
