"""The arithmetic of a probe and of an update in plain PyTorch: the oracle of all kernels.

Both are fp32 arithmetic with one rounding at the end, stochastic where the target has 16
bits: so an update far below one ulp still counts on average, and a probe shows every weight
that the update will move, be its ulp far above the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
ROUNDINGS = ("hashed", "stochastic", "nearest")
"""Of what is rounded to 16 bits. An update is always rounded stochastically, and so are probes, by
words of a hash (`zopeft.noise.dither`). "stochastic" takes an update's from Philox, and "nearest"
rounds probes to nearest besides: a run that began so, by an earlier zopeft, goes on so."""


def perturb(
    weight: Tensor,
    direction: Tensor,
    step: float,
    words: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns ``weight + step * direction``, rounded once.

    Args:
        weight: The stored weights, any shape and floating dtype.
        direction: fp32 ``u = scale * z``, of the same shape.
        step: Finite-difference step, with its sign.
        words: int64, as many, what decides the rounding to 16 bits (`dither_words`); the
            same for both signs of a step, so that where it is below half an ulp no weight
            is moved by both of them. None for rounding to nearest.
        dtype: What is returned; None for the weight's dtype.

    Returns:
        A new tensor; `weight` is not touched.
    """
    value, dtype = direction.mul(step).add_(weight), dtype or weight.dtype
    if words is None or dtype not in SIXTEEN_BIT:
        return value.to(dtype)
    return stochastic_round(value, words.view(value.shape), dtype)


def update_(
    weight: Tensor,
    direction: Tensor,
    coefficient: Tensor | float,
    decay: Tensor | float,
    words: Tensor | None,
) -> None:
    """Writes ``decay * weight + coefficient * direction`` into `weight`.

    Args:
        weight: A flat, contiguous run of the stored weights, changed in place.
        direction: fp32 ``u = scale * z`` for the same elements.
        coefficient: Minus learning rate times projected gradient.
        decay: One minus learning rate times weight decay.
        words: int64 [n], what decides the rounding to 16 bits; None for fp32.
    """
    target = weight.to(torch.float32).mul(decay).add_(direction * coefficient)
    if words is not None:
        target = stochastic_round(target, words, weight.dtype)
    weight.copy_(target)


def stochastic_round(value: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds fp32 numbers up or down to a 16-bit dtype, so that the mean is kept.

    The chance of the upper neighbour is the distance from the lower one in units of the
    gap between both. Numbers that `dtype` holds exactly stay as they are.

    Args:
        value: fp32, any shape.
        words: int64 of the same shape, a 32-bit random word an element.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        In `dtype`, of the shape of `value`; magnitudes beyond the largest finite number are
        clamped to it.

    Raises:
        TypeError: `dtype` is neither of the two.
    """
    if dtype == torch.bfloat16:
        dropped = 16
    elif dtype == torch.float16:
        dropped = 13
    else:
        raise TypeError(f"stochastic_round: dtype must be bfloat16 or float16, got {dtype}")
    bits = value.view(torch.int32).to(torch.int64)
    kept = (bits + (words >> (32 - dropped))) & ~((1 << dropped) - 1)
    rounded = kept.to(torch.int32).view(torch.float32)
    if dtype == torch.float16:
        # Below 2**-14 the numbers of fp16 are 2**-24 apart, whatever the exponent.
        uniform = (words >> 8).to(torch.float32).mul_(2.0**-24)
        small = value.mul(2.0**24).add_(uniform).floor_().mul_(2.0**-24)
        rounded = torch.where(value.abs() < 2.0**-14, small, rounded)
    limit = torch.finfo(dtype).max
    rounded = torch.where(value.isfinite(), rounded.clamp(-limit, limit), value)
    return rounded.to(dtype)
