"""Normalisation: the scales share a fixed budget, so that they say nothing about the step size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zopeft.blocks.peft import base_of

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.finetuner.config import FineTunerConfig


def normalise(raw: Tensor, numels: Tensor, matched: Tensor | None = None) -> Tensor:
    """Scales the raw outputs so that the squared scales weigh as much as ones would.

    ``scale_i = raw_i sqrt(sum_j d_j) / sqrt(sum_j d_j raw_j^2)``, so that
    ``sum_i d_i scale_i^2 = sum_i d_i``: the direction is as long as MeZO's on average, and
    the learning rate keeps its meaning.

    Differentiable through the sum as well; the authors' code cuts the gradient there.

    Args:
        raw: Raw scales [N].
        numels: Elements d of each block [N].
        matched: Which blocks take part [N]; the others get 1. None: all.

    Returns:
        Scales [N]; zeros where every raw scale is 0.

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        section 3.2 and line 5 of Algorithm 1, which fix the Frobenius norm of the
        matrix of scales to that of the identity. This and the authors' code read a scale as a
        standard deviation; the text calls it a variance. Here it is a standard deviation
        everywhere. What a block counts is `normalisation_weights`.
    """
    weight = numels.to(raw.dtype)
    if matched is not None:
        weight = torch.where(matched, weight, torch.zeros_like(weight))
    # Relative weights keep the sums near 1 however large the model is.
    weight = weight / weight.sum().clamp_min(1)
    power = (weight * raw.square()).sum()
    factor = power.clamp_min(torch.finfo(raw.dtype).tiny).rsqrt()
    scaled = raw * factor
    return scaled if matched is None else torch.where(matched, scaled, torch.ones_like(scaled))


def normalisation_weights(config: FineTunerConfig, blocks: Blocks) -> Tensor | None:
    """Returns what each block counts where that is not its size.

    With ``normalisation="authors"``, as in the authors' code, a tensor with ``embed`` in its
    name counts ``hidden_size * embed_rows`` instead of ``V * D``: the rows that a batch of
    short examples may touch. Position tables are caught by their names, a tied head with its
    embedding; an untied head counts in full. Adapters of an embedding count their size
    (the authors' code knows no adapters).

    Args:
        config: A fine-tuner's configuration.
        blocks: The blocks it serves, [N].

    Returns:
        Elements that count, float32 [N], 0 for the blocks that count their size; None where
        all blocks do.
    """
    if config.normalisation == "all":
        return None
    model = getattr(base_of(blocks.model), "config", None)
    if model is not None and hasattr(model, "get_text_config"):
        model = model.get_text_config()
    hidden = getattr(model, "hidden_size", None)
    return torch.tensor(
        [
            float((hidden or block.shape[-1]) * config.embed_rows)
            if "embed" in block.key and block.role == block.base_role and block.kind != "prompt"
            else 0.0
            for block in blocks
        ]
    )
