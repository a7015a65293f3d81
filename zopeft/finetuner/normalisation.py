"""Normalisation: the scales share a fixed budget, so that they say nothing about the step size."""

from __future__ import annotations

import torch
from torch import Tensor


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
        everywhere. Every block counts its full size (the code counts embeddings otherwise).
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
