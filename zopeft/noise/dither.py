"""Dither: the random words by which probes and updates are rounded to 16 bits.

What decides a rounding comes from a hash of six integer operations and not from another stream of
Philox, which takes as long as all the rest of a 16-bit update. The words are addressed as
the noise is, and like it independent of how a tensor is cut into pieces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.noise.philox import MASK

FACTORS = (0x7FEB352D, 0x846CA68B)
SHIFT = 15
UPDATED = 0x9E3779B97F4A7C15
"""What a step's key is changed by (exclusive or) for its update, so that no weight is
rounded by the word that one of its probes was rounded by; an odd number of no meaning."""


def dither_words(seed: int, addresses: Tensor | int, elements: Tensor) -> Tensor:
    """Returns one 32-bit word an element, the same for all probes along a direction.

    ``x = (e + (k0 ^ a)) m0``, ``x = (x ^ x >> 15 ^ k1 ^ a) m1``, modulo 2**32: a bijection of
    the element, and of either half of the key. Its upper bits are the random ones, and rounding
    reads those.

    Args:
        seed: 64-bit key of the direction, lower half k0, upper half k1.
        addresses: a, 32-bit address of the tensor, or of each element's.
        elements: e, int64, indices in the whole logical tensor.

    Returns:
        int64 in the shape of `elements`, each between 0 and 2**32 - 1.

    References:
        The constants are those of the integer hash with the least bias that Wellons found,
        "Prospecting for Hash Functions", 2018, of which this is the middle, with a key in it.
    """
    low, high = (addresses ^ (seed & MASK)), (addresses ^ ((seed >> 32) & MASK))
    x = (((elements + low) & MASK) * FACTORS[0]) & MASK
    return ((x ^ (x >> SHIFT) ^ high) * FACTORS[1]) & MASK


def dither_run(
    seed: int, address: int, start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Returns the words of elements start ... start + count - 1 of one tensor, int64 [count]."""
    elements = torch.arange(start, start + count, dtype=torch.int64, device=device)
    return dither_words(seed, address & MASK, elements)
