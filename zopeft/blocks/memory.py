"""Which parameters are one tensor in memory: tied not by being one object, but by where they lie.

Some code ties weights by a view: PEFT's ``ensure_weight_tying`` makes the output layer's
LoRA matrices transposed views of the embedding's. Each parameter is an object of its own
then, and what is written to one is written to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Extent:
    """The bytes that a parameter spans, and which of them are its own.

    Attributes:
        device: Where they are.
        first: Address of the first byte.
        last: Address after the last one.
        strides: (stride, size) of each dimension, largest stride first, dimensions that run
            on into each other as one; with `first` and the dtype it names a set of elements.
    """

    device: torch.device
    first: int
    last: int
    strides: tuple[tuple[int, int], ...]


def extent(parameter: Tensor) -> Extent | None:
    """Returns where a parameter lies; None for one without memory of its own to look at.

    Args:
        parameter: Of any shape and strides.
    """
    plain = type(parameter) in (Tensor, nn.Parameter) and parameter.layout == torch.strided
    if not plain or parameter.is_meta or parameter.numel() == 0:
        return None
    sizes = zip(parameter.stride(), parameter.shape, strict=True)
    steps: list[tuple[int, int]] = []
    for stride, size in sorted(((st, n) for st, n in sizes if n > 1), reverse=True):
        if steps and steps[-1][0] == stride * size:
            steps[-1] = (stride, steps[-1][1] * size)
        else:
            steps.append((stride, size))
    span = 1 + sum(stride * (size - 1) for stride, size in steps)
    first = parameter.data_ptr()
    last = first + span * parameter.element_size()
    return Extent(parameter.device, first, last, tuple(steps))


def shared(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[int, int, bool]]:
    """Yields pairs of different parameters that have elements in common.

    Args:
        parameters: Each once.

    Yields:
        Numbers of the two, the lower first, and whether all of their elements are common.
    """
    found = [(number, extent(parameter)) for number, parameter in enumerate(parameters)]
    placed = [(number, place) for number, place in found if place is not None]
    placed.sort(key=lambda pair: (str(pair[1].device), pair[1].first))
    open_: list[tuple[int, Extent]] = []
    for number, place in placed:
        open_ = [o for o in open_ if o[1].device == place.device and o[1].last > place.first]
        for other, there in open_:
            low, high = sorted((number, other))
            one, two = parameters[low], parameters[high]
            same = (there.first, there.strides) == (place.first, place.strides)
            if same and one.dtype == two.dtype:
                yield low, high, True
            elif _overlap(one, two):
                yield low, high, False
        open_.append((number, place))


def _overlap(one: Tensor, two: Tensor) -> bool:
    """Whether two parameters whose bytes interleave have some in common; looks at each byte."""
    start = min(one.data_ptr(), two.data_ptr())
    marks: list[Tensor] = []
    last = max(place.last for p in (one, two) if (place := extent(p)) is not None)
    for parameter in (one, two):
        size = parameter.element_size()
        mark = torch.zeros(last - start, dtype=torch.bool)
        strides = [stride * size for stride in parameter.stride()]
        offset = parameter.data_ptr() - start
        mark.as_strided((*parameter.shape, size), (*strides, 1), offset).fill_(True)
        marks.append(mark)
    return bool((marks[0] & marks[1]).any())
