"""Standard normal noise, by Box-Muller."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPAN = 4


def gaussian(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Turns Philox words into standard normal numbers.

    ``r = sqrt(-2 ln u)``, ``z = r cos(2 pi v), r sin(2 pi v)`` with ``u = (word >> 8 +
    1/2) / 2**24`` in (0, 1) and ``v = (word >> 8) / 2**24`` in [0, 1), in fp32. Another
    backend may differ by an ulp of fp32, since log, sin and cos are not exactly rounded.

    Args:
        words: Four int64 tensors [n] of 32-bit words.

    Returns:
        fp32 [n, 4]; mean 0, variance 1, largest magnitude 5.9.

    References:
        Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    uniform = torch.stack(words, dim=-1).bitwise_right_shift_(8).to(torch.float32)
    radius = uniform[..., 0::2].add(0.5).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = uniform[..., 1::2].mul(2.0 * math.pi * 2.0**-24)
    pairs = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return pairs.mul_(radius.unsqueeze(-1)).flatten(-2)
