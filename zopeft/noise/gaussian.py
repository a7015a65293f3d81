"""Standard normal noise, by Box-Muller in arithmetic that every backend does alike."""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 4

TURN = 2.0**-24
"""One over the number of steps of the uniform numbers."""
ROOT_HALF = 0x3F3504F3
"""Bits of the fp32 number below sqrt(1/2): mantissas run from there to sqrt(2)."""
TWO_LN_2 = 1.3862943649291992
LOG = (
    -0.17425011098384857, 0.29120486974716187, -0.3010110557079315, 0.3307015299797058,
    -0.3988283574581146, 0.5000643134117126, -0.6666975617408752, 0.999999463558197, -2.0,
)  # fmt: skip
"""-2 ln(1 + f) / f for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, highest power first."""
SINE = (
    0.0772201269865036, -0.5980451703071594, 2.5500314235687256, -5.1677069664001465,
    3.141592502593994,
)  # fmt: skip
"""sin(pi t) / t in powers of t**2 for |t| <= 1/2, highest first."""
COSINE = (
    -0.024396715685725212, 0.23493756353855133, -1.3352121114730835, 4.058709144592285,
    -4.934802055358887, 1.0,
)  # fmt: skip
"""cos(pi t) in powers of t**2 for |t| <= 1/2, highest first."""


def gaussian(words: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Turns Philox words into standard normal numbers, two from each pair of words.

    ``r = sqrt(-2 ln u)``, ``z = r cos(pi v), r sin(pi v)``, where ``u = (word >> 8 + 1/2)
    / 2**24``, rounded to fp32, is in (0, 1], ``v = (word >> 8) / 2**24`` of a signed word in
    [-1/2, 1/2), and the lowest bit of that word turns the cosine's sign, so that the angle goes
    all the way round.

    Logarithm, sine and cosine are polynomials, evaluated in fp32 with each product and
    each sum rounded on its own. So a backend that does not contract them gives the same
    bits, on any machine; the values are within 1e-6 of those of exact functions of u, v.

    Args:
        words: Four int64 tensors [n] of 32-bit words.

    Returns:
        fp32 [n, 4]; mean 0, variance 1, largest magnitude 5.9.

    References:
        Box, Muller, "A Note on the Generation of Random Normal Deviates", 1958.
    """
    radius = _radius(torch.stack(words[0::2], dim=-1))
    angle = torch.stack(words[1::2], dim=-1).to(torch.int32)
    turn = (angle >> 8).to(torch.float32).mul_(TURN)
    square = turn * turn
    sine = _polynomial(SINE, square).mul_(turn)
    cosine = _polynomial(COSINE, square).view(torch.int32)
    cosine = cosine.bitwise_xor_(angle << 31).view(torch.float32)
    return torch.stack((cosine.mul_(radius), sine.mul_(radius)), dim=-1).flatten(-2)


def _radius(word: Tensor) -> Tensor:
    """Returns sqrt(-2 ln u), with u split into a power of two and 1 + f."""
    uniform = (word >> 8).to(torch.float32).add_(0.5).mul_(TURN)
    bits = uniform.view(torch.int32)
    exponent = (bits - ROOT_HALF) >> 23
    fraction = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    mantissa = _polynomial(LOG, fraction).mul_(fraction)
    square = exponent.to(torch.float32).mul_(-TWO_LN_2).add_(mantissa)
    # torch's own fp32 root may be off by an ulp; by way of fp64 it is rounded exactly.
    return square.double().sqrt_().to(torch.float32)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule; one product and one sum a coefficient, both rounded."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(x).add_(coefficient)
    return value
