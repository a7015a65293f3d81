"""Labels drawn from the model itself: gradients of them measure the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import option_scores


@torch.no_grad()
def draw_labels(
    model: Any, batch: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], int]:
    """Replaces a batch's labels by draws from the model's own distribution.

    "choice" batches: one option an example, by the softmax over option scores. "answer"
    batches: one token a place, given the true tokens before it.

    Args:
        model: A causal language model.
        batch: A batch that `Collator` made, on the model's device.
        seed: Seed of the draws, apart from the global generator.

    Returns:
        The batch with drawn labels, and their number N: the loss is a mean over N
        independent draws.
    """
    drawn = dict(batch)
    if "option_table" in batch:
        scores = option_scores(model, batch)
        drawn["option_label"] = _draw(scores, seed)
        return drawn, len(scores)
    labels = batch["labels"].clone()
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    logits = narrow_logits(model, batch, rows * labels.shape[1] + places)
    labels[rows, places + 1] = _draw(logits, seed)
    drawn["labels"] = labels
    return drawn, len(rows)


def _draw(logits: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed % 2**63)
    chances = logits.softmax(-1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
