"""Outputs: logits that a loss has read, so that two ways of running a batch can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks.peft import base_of
from zopeft.probing.packed import LAYOUT

SOME = 256
"""Places whose logits are kept."""


@contextmanager
def outputs(
    model: nn.Module, batch: Mapping[str, Any], needed: Tensor | None
) -> Iterator[list[Tensor]]:
    """Yields a list to which each forward inside adds its logits at the same places of a batch.

    Args:
        model: A causal language model.
        batch: The batch that is run, padded or with a layout.
        needed: Flat places of the padded batch that its loss reads [U], in the order in which
            narrowed logits [1, U, V] have them; None for all of its tokens.

    Yields:
        fp32 [U, V] at evenly chosen places, `SOME` at most; nothing of a forward of some rows
        alone, as models that look at padding are run.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if needed is None:
        places = (torch.ones_like(ids) if mask is None else mask).flatten().nonzero()[:, 0]
    else:
        places = needed
    count = min(SOME, len(places))
    chosen = torch.linspace(0, len(places) - 1, count, device=places.device).long()
    layout, flat = batch.get(LAYOUT), places[chosen]
    rows, width = ids.shape if layout is None else layout.ids.shape
    if layout is not None:
        flat = layout.places[flat]
    found: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        logits = output.get("logits") if isinstance(output, dict) else None
        if not isinstance(logits, Tensor):
            return
        if needed is not None and logits.shape[:2] == (1, len(needed)):
            found.append(logits[0, chosen].float())
            return
        if logits.shape[0] != rows or logits.shape[1] < width:
            return
        # What stands before the text is PEFT's.
        found.append(logits[:, logits.shape[1] - width :].flatten(0, 1)[flat].float())

    hook = base_of(model).register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
