"""Sensitivity: which weights have the largest squared gradients, summed over some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks, discover
from zopeft.blocks.offloaded import refuse_offloaded
from zopeft.errors import input_error
from zopeft.finetuner.config import public_name
from zopeft.finetuner.mask import Mask
from zopeft.meta.summing import backward
from zopeft.meta.trajectory import only_blocks_trainable
from zopeft.probing.model_loss import ModelLoss
from zopeft.ranks import ALONE, Ranks


def sensitive_mask(
    model: nn.Module,
    batches: Iterable[Any],
    share: float = 1e-3,
    loss_function: Callable[[Any, Any], Tensor] | None = None,
    blocks: Blocks | None = None,
    ranks: Ranks = ALONE,
) -> Mask:
    """Learns which weights to train: those of the largest ``sum_b (dL_b / d theta)^2``.

    One backward pass a batch at the weights as they are, which stay bit for bit; a number in
    fp32 for each weight, and one block's gradient at a time. The paper takes a few hundred
    sequences of pre-training text: a mask belongs to the base model, not to a task.

    Args:
        model: The model.
        batches: What the loss function takes, on the model's device; one at least.
        share: Share of all weights that is picked, above 0 and at most 1.
        loss_function: From model and batch to a 0-dim loss; None for ``model(**batch).loss``.
        blocks: The blocks to pick from; by default those that `discover` finds.
        ranks: Who learns it together: what the loss function gives is then this rank's part of a
            batch's loss, and the parts add up to it.

    Returns:
        The mask, for ``method: sensitive``; `Mask.save` writes it.

    Raises:
        InputError: There is no batch, `share` is out of range, a gradient is not finite, or
            weights are offloaded.

    References:
        Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity", 2024, section 3.
    """
    if not 0.0 < share <= 1.0:
        raise input_error("sensitive_mask share", "must be above 0 and at most 1", share)
    blocks = discover(model) if blocks is None else blocks
    refuse_offloaded(blocks, "sensitive_mask")
    loss = ModelLoss() if loss_function is None else loss_function
    scores: dict[int, Tensor] = {}

    def consumer(parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        for index in indices:
            columns = blocks[index].columns
            own = gradient if columns is None else gradient[..., slice(*columns)]
            square = own.float().square()
            scores[index] = scores[index].add_(square) if index in scores else square

    training, count = model.training, 0
    model.eval()
    try:
        with only_blocks_trainable(model, blocks):
            for batch in batches:
                backward(blocks, consumer, partial(loss, model, batch), ranks)
                count += 1
    finally:
        model.train(training)
    if not count:
        raise input_error("sensitive_mask batches", "there is no batch", None)
    facts = {"share": f"{share:g}", "batches": str(count), "base": public_name(blocks.base_name)}
    whole = {
        block.name: scores.get(index, torch.zeros(block.shape))
        for index, block in enumerate(blocks)
    }
    return Mask.largest(whole, share, facts)
