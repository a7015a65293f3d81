"""Philox4x32-10, the counter-based generator that all of zopeft's noise is read from.

A counter-based generator is a function of an address, not a stream: the words of an
address are the same whenever, wherever and in whatever order they are asked for. This
plain PyTorch form is the definition; every faster form is tested against it.

References:
    Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox4x32(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int],
    key: int,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the four 32-bit words of each counter under `key`.

    Words are kept in int64 tensors, between 0 and 2**32 - 1: a product of two words
    wraps modulo 2**64, and an arithmetic shift by 32 followed by a mask still gives its
    upper half.

    Args:
        counter: The four counter words; tensors (any shapes that broadcast) or ints,
            each between 0 and 2**32 - 1.
        key: The 64-bit key.
        device: Where ints are placed; by default, the device of the first tensor.

    Returns:
        Four int64 tensors of the broadcast shape.
    """
    if device is None:
        device = next((c.device for c in counter if isinstance(c, Tensor)), None)
    c0, c1, c2, c3 = (
        c if isinstance(c, Tensor) else torch.tensor(c & MASK, dtype=torch.int64, device=device)
        for c in counter
    )
    k0, k1 = key & MASK, (key >> 32) & MASK
    m0, m1 = MULTIPLIERS
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0 = (((p1 >> 32) & MASK) ^ c1) ^ k0
        c2 = (((p0 >> 32) & MASK) ^ c3) ^ k1
        c1, c3 = p1 & MASK, p0 & MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    w0, w1, w2, w3 = torch.broadcast_tensors(c0, c1, c2, c3)
    return w0, w1, w2, w3
