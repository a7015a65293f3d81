"""Labels drawn from the model itself: gradients of them measure the Gauss-Newton matrix.

A draw is addressed by the step's seed, the example's number in the batch and the token's place in
it: which examples are drawn for together, and on which process, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.noise.address import role_seed
from zopeft.noise.philox import philox4x32
from zopeft.tasks.dataset import IGNORED
from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import option_scores


@torch.no_grad()
def draw_labels(
    model: Any, batch: Mapping[str, Tensor], seed: int, first: int = 0
) -> tuple[dict[str, Tensor], int]:
    """Replaces a batch's labels by draws from the model's own distribution.

    "choice" batches: one option an example, by the softmax over option scores. "answer"
    batches: one token a place, given the true tokens before it.

    Args:
        model: A causal language model.
        batch: A batch that `Collator` made, on the model's device.
        seed: Seed of the draws, apart from the global generator.
        first: Number of the batch's first example, where it is a part of a larger batch.

    Returns:
        The batch with drawn labels, and their number N: the loss is a mean over N
        independent draws.
    """
    drawn = dict(batch)
    if "option_table" in batch:
        scores = option_scores(model, batch)
        examples = torch.arange(len(scores))
        drawn["option_label"] = _draw(scores, seed, examples + first, torch.zeros_like(examples))
        return drawn, len(scores)
    labels = batch["labels"].clone()
    rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    logits = narrow_logits(model, batch, rows * labels.shape[1] + places)
    labels[rows, places + 1] = _draw(logits, seed, rows.cpu() + first, places.cpu())
    drawn["labels"] = labels
    return drawn, len(rows)


def _draw(logits: Tensor, seed: int, examples: Tensor, places: Tensor) -> Tensor:
    """Draws a column of each row of logits [U, V]: where the sum of chances passes a number."""
    sums = logits.softmax(-1).cpu().cumsum_(-1)
    words = philox4x32((places, examples, 0, 0), role_seed(seed, "labels"))[0]
    # With 24 bits the product is below the last sum, so nothing without a chance is drawn.
    passed = (words >> 8).float() * 2.0**-24 * sums[:, -1]
    found = torch.searchsorted(sums, passed[:, None], right=True)[:, 0]
    # Logits that are not numbers have no columns.
    return found.clamp_(max=logits.shape[-1] - 1).to(logits.device)
