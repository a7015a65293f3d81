"""One forward for two losses: logits that are asked for again are those of before.

They have their graph with them. True labels and labels that are drawn from the model read the same
logits, so that both gradients need one forward pass and a backward pass each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_KEPT: ContextVar[dict[Any, tuple[Any, Tensor, Tensor]] | None] = ContextVar("_KEPT", default=None)


@contextmanager
def one_forward() -> Iterator[None]:
    """Inside, logits of the same texts at the same places are made once.

    It is for weights that stay as they are. The first time must be with gradients if any is to
    have them.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def kept(
    model: Any, batch: Mapping[str, Any], places: Tensor, count: int, make: Callable[[], Tensor]
) -> Tensor:
    """Returns what `make` makes, or has made for the same texts and places.

    Args:
        model: The model.
        batch: The batch: its ``input_ids`` are the texts.
        places: The places.
        count: Copies of the batch.
        make: Makes the logits.
    """
    memory = _KEPT.get()
    if memory is None:
        return make()
    ids = batch["input_ids"]
    key = (id(model), id(ids), count, torch.is_inference_mode_enabled())
    if key in memory:
        _, before, logits = memory[key]
        if torch.equal(before, places):
            return logits
    # The texts are kept, too: what is freed may have its number given away.
    logits = make()
    memory[key] = (ids, places, logits)
    return logits
