"""The registries of noise: families of numbers, and what a run's directions are made of.

A family gives independent numbers, element by element. A noise is what a user names: most
are a family for all blocks; `low_rank` makes the matrices among them of products of a
family's numbers, which no element knows by itself.
"""

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


FAMILIES = Registry(
    "noise family",
    {
        "gaussian": Family(gaussian.gaussian, gaussian.SPAN),
        "binomial": Family(binomial.binomial, binomial.SPAN),
        "rademacher": Family(rademacher.rademacher, rademacher.SPAN),
    },
)
"""Zero mean and unit variance per element, independent."""


@dataclass(frozen=True)
class Kind:
    """What the directions of a run are made of.

    Args:
        family: A name of `FAMILIES`: the numbers.
        low_rank: Whether a matrix is a product of two thin ones of such numbers.
    """

    family: str
    low_rank: bool = False


NOISES = Registry(
    "noise",
    {
        "gaussian": Kind("gaussian"),
        "binomial": Kind("binomial"),
        "rademacher": Kind("rademacher"),
        "low_rank": Kind("gaussian", low_rank=True),
    },
    {
        "gaussian": "standard normal, by Box-Muller (the paper's)",
        "binomial": "sum of four bytes: near-Gaussian, the same bits on every backend",
        "rademacher": "plus or minus one: one bit an element",
        "low_rank": "matrices A B' / sqrt(rank) of Gaussian factors: a side path in the forward",
    },
)
"""The names that methods and recipes take; zero mean and unit variance per element."""
