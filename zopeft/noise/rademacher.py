"""Plus or minus one with equal chance: one bit an element."""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 128


def rademacher(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Turns each bit of the Philox words into a sign, lowest bit first.

    Element e of a counter reads bit ``e % 32`` of word ``e // 32``; bit 1 is +1.

    Args:
        words: Four int64 tensors [n] of 32-bit words.

    Returns:
        fp32 [n, 128] of -1 and +1: mean 0, variance 1, the same bits on every backend.
    """
    word = torch.stack(words, dim=-1).unsqueeze(-1)
    shifts = torch.arange(32, dtype=torch.int64, device=word.device)
    bits = ((word >> shifts) & 1).flatten(-2)
    return bits.to(torch.float32).mul_(2.0).sub_(1.0)
