"""The registry of noise families: zero mean and unit variance per element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zopeft.noise import binomial, gaussian, rademacher
from zopeft.registry import Registry

Words = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Family:
    """One noise family.

    Args:
        draw: From four int64 tensors [n] of Philox words to fp32 [n, span].
        span: Elements that one counter serves.
    """

    draw: Callable[[Words], Tensor]
    span: int


NOISES = Registry(
    "noise",
    {
        "gaussian": Family(gaussian.gaussian, gaussian.SPAN),
        "binomial": Family(binomial.binomial, binomial.SPAN),
        "rademacher": Family(rademacher.rademacher, rademacher.SPAN),
    },
    {
        "gaussian": "standard normal, by Box-Muller (the paper's)",
        "binomial": "sum of four bytes: near-Gaussian, the same bits on every backend",
        "rademacher": "plus or minus one: one bit an element",
    },
)
