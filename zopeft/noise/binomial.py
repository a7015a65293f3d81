"""Near-Gaussian noise in integer arithmetic: the same bits on every backend."""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 4
CENTRE = 510
SCALE = 1.0 / 147.8005412709683
"""One over the standard deviation of a sum of four bytes, sqrt(4 (256**2 - 1) / 12)."""


def binomial(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Turns each Philox word into the centred, scaled sum of its four bytes.

    ``z = (b0 + b1 + b2 + b3 - 510) / sqrt(21845)``. The sum is exact in integers and is
    scaled by one fp32 product, so every backend gives the same bits. Kurtosis 2.7
    (normal: 3), largest magnitude 3.5.

    Args:
        words: Four int64 tensors [n] of 32-bit words.

    Returns:
        fp32 [n, 4]; mean 0, variance 1.
    """
    word = torch.stack(words, dim=-1)
    total = (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + (word >> 24)
    return total.sub_(CENTRE).to(torch.float32).mul_(SCALE)
