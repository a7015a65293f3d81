"""Addressed noise: z(seed, address, element), whatever the order it is read in.

The Philox key is the step's seed; the counter is (element index // span, address of the
tensor, stream, 0), where the element index is that of the whole logical tensor and
``span`` is the number of elements that one counter serves. So a probe and its update
cannot disagree, frozen or reordered parameters change nothing, and a shard needs only
its offset.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.noise.families import FAMILIES
from zopeft.noise.philox import MASK, philox4x32

DIRECTION_STREAM = 0
ROUNDING_STREAM = 1
LEFT_STREAM, RIGHT_STREAM = 2, 3
"""Streams of the factors that shaped directions are products of; elements are the factor's."""


def step_seed(run_seed: int, step: int) -> int:
    """Returns the 64-bit key of a step: a hash of the run's seed and the step's number.

    Args:
        run_seed: The seed of the run; any integer.
        step: The step's number, from 0.
    """
    text = f"zopeft step {run_seed} {step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def direction_seed(seed: int, number: int) -> int:
    """Returns the 64-bit key of one of a step's directions: the first has the step's own.

    The others are hashed from a text that no step's key is hashed from, so that two keys
    of a run are equal as rarely as those of two steps.

    Args:
        seed: 64-bit key of the step.
        number: The direction's number in the step, from 0.
    """
    if number == 0:
        return seed
    text = f"zopeft direction {seed} {number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def role_seed(seed: int, role: str) -> int:
    """Returns the 64-bit key of a role of its own, for a run or for a step.

    Hashed from a text that neither steps nor directions are hashed from, so no two roles
    share numbers.

    Args:
        seed: The run's seed, or the key of a step.
        role: The role, such as "layers".
    """
    text = f"zopeft role {seed} {role}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Noise:
    """A noise family with the number of elements that one counter serves.

    Args:
        family: A name of `FAMILIES`: "gaussian", "binomial" or "rademacher".

    Raises:
        InputError: The family is unknown.
    """

    family: str = "gaussian"

    def __post_init__(self) -> None:
        FAMILIES[self.family]

    @property
    def span(self) -> int:
        """Elements a counter serves: 4 for gaussian and binomial, 128 for rademacher."""
        return int(FAMILIES[self.family].span)

    def at_counters(
        self,
        seed: int,
        counters: Tensor,
        addresses: Tensor | int,
        stream: int = DIRECTION_STREAM,
    ) -> Tensor:
        """Returns the noise of whole counters.

        Args:
            seed: 64-bit key of the step.
            counters: int64 [n], element index // span.
            addresses: 32-bit address of the tensor that each counter belongs to.
            stream: Which of the address's streams is read.

        Returns:
            fp32 [n * span].
        """
        words = philox4x32((counters, addresses, stream, 0), seed)
        noise: Tensor = FAMILIES[self.family].draw(words)
        return noise.flatten()

    def at_elements(
        self, seed: int, address: int, start: int, count: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Returns the noise of elements start ... start + count - 1 of one tensor.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            start: Index of the first element in the whole logical tensor.
            count: Number of elements.
            device: Where the noise is made.

        Returns:
            fp32 [count].
        """
        first, last = start // self.span, (start + count - 1) // self.span
        counters = torch.arange(first, last + 1, dtype=torch.int64, device=device)
        skip = start - first * self.span
        return self.at_counters(seed, counters, address)[skip : skip + count]

    def at_places(self, seed: int, address: int, elements: Tensor) -> Tensor:
        """Returns the noise of any elements of one tensor.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            elements: int64 [n], indices in the whole logical tensor; quickest where ascending.

        Returns:
            fp32 [n].
        """
        counters, place = torch.unique_consecutive(elements // self.span, return_inverse=True)
        noise = self.at_counters(seed, counters, address)
        return noise[place * self.span + elements % self.span]

    def at_rows(self, seed: int, address: int, rows: Tensor, width: int) -> Tensor:
        """Returns the noise of some rows of a matrix, without that of the others.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            rows: int64 [n], row numbers.
            width: Elements a row.

        Returns:
            fp32 [n, width].
        """
        start = rows * width
        first = start // self.span
        counters_a_row = (width + self.span - 2) // self.span + 1
        if width % self.span == 0:
            counters_a_row = width // self.span
        counters = first.unsqueeze(1) + torch.arange(counters_a_row, device=rows.device)
        noise = self.at_counters(seed, counters.flatten(), address)
        noise = noise.view(len(rows), counters_a_row * self.span)
        if width % self.span == 0:
            return noise
        skip = (start - first * self.span).unsqueeze(1)
        columns = skip + torch.arange(width, device=rows.device)
        return noise.gather(1, columns)


def rounding_words(
    seed: int, address: int, start: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Returns one addressed 32-bit word an element, for stochastic rounding.

    Returns:
        int64 [count], each between 0 and 2**32 - 1; element e reads word ``e % 4`` of
        counter ``e // 4`` in a stream of its own.
    """
    first, last = start // 4, (start + count - 1) // 4
    counters = torch.arange(first, last + 1, dtype=torch.int64, device=device)
    words = philox4x32((counters, address & MASK, ROUNDING_STREAM, 0), seed)
    return torch.stack(words, dim=-1).flatten()[start - first * 4 :][:count]


def rounding_at(seed: int, address: int, elements: Tensor) -> Tensor:
    """Returns the words of `rounding_words` of any elements, int64 [n]; ascending is quickest."""
    counters, place = torch.unique_consecutive(elements // 4, return_inverse=True)
    words = philox4x32((counters, address & MASK, ROUNDING_STREAM, 0), seed)
    return torch.stack(words, dim=-1).flatten()[place * 4 + elements % 4]
