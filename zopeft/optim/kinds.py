"""Kinds of state: what a method may declare that it keeps, each of which knows all about itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks


class Kept(ABC):
    """A kind of state. Its value is made when it is first asked for."""

    @abstractmethod
    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """Returns the value that it begins with.

        Args:
            blocks: The blocks, [N].
            weights: Returns a block's weights as they are, by its index.
        """

    @abstractmethod
    def replaced(self, value: Any, new: Any) -> Any:
        """Returns what becomes of a value where a step writes a new one."""

    def begin(self, value: Callable[[], Any], chosen: Collection[int]) -> None:
        """Prepares for a step about some blocks, which may be their first.

        Args:
            value: Returns the value, made.
            chosen: The blocks' indices.
        """
        return

    def seen(self, value: Any, chosen: Collection[int]) -> Any:
        """Returns what a step about some blocks sees of a value."""
        return value

    def merged(self, value: Callable[[], Any], new: Any, chosen: Collection[int]) -> Any:
        """Returns a new value as a step about some blocks may write it."""
        return new

    def bytes(self, blocks: Blocks, own: Sequence[Block]) -> int:
        """Returns the memory that it takes once it has been made.

        Args:
            blocks: The blocks, [N].
            own: Those that the run is ever about.
        """
        return 0

    def saved(self, value: Any) -> Any:
        """Returns a value as a checkpoint holds it."""
        return value

    def loaded(self, value: Any, saved: Any) -> Any:
        """Returns the value that `saved` was taken of, in the place of one just made."""
        return self.replaced(value, saved)


@dataclass(frozen=True)
class PerElement(Kept):
    """One fp32 number for each element of each block, beside its weights.

    Args:
        start: What all begin with.
    """

    start: float = 0.0

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`: tensors of the blocks."""

        def beside(index: int) -> Tensor:
            return torch.full(blocks[index].own_shape, self.start, device=_device(blocks[index]))

        return Buffers(len(blocks), beside)

    def replaced(self, value: Any, new: Any) -> Any:
        """See `Kept.replaced`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("is changed by maps alone")

    def bytes(self, blocks: Blocks, own: Sequence[Block]) -> int:
        """See `Kept.bytes`."""
        return 4 * sum(math.prod(block.own_shape) for block in own)

    def saved(self, value: Any) -> Any:
        """See `Kept.saved`."""
        return [None if each is None else each.clone() for each in value.made()]

    def loaded(self, value: Any, saved: Any) -> Any:
        """See `Kept.loaded`."""
        for index, each in enumerate(saved):
            if each is not None:
                value[index].copy_(each)
        return value


@dataclass(frozen=True)
class Start(PerElement):
    """The weights that the run began with, of each block, as they are held."""

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`: tensors of the blocks."""
        assert weights is not None
        return Buffers(len(blocks), lambda index: weights(index).detach().clone())

    def begin(self, value: Callable[[], Any], chosen: Collection[int]) -> None:
        """See `Kept.begin`: the weights are taken before the step writes them."""
        for index in chosen:
            value()[index]

    def bytes(self, blocks: Blocks, own: Sequence[Block]) -> int:
        """See `Kept.bytes`."""
        flat = blocks.space == "adapter"
        sizes = [(4 if flat else b.parameter.element_size(), b.own_shape) for b in own]
        return sum(size * math.prod(shape) for size, shape in sizes)


@dataclass(frozen=True)
class PerBlock(Kept):
    """One float64 number for each block.

    Args:
        start: What all begin with.
    """

    start: float = 0.0

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`: a tensor [N]."""
        return torch.full((len(blocks),), self.start, dtype=torch.float64)

    def replaced(self, value: Any, new: Any) -> Any:
        """See `Kept.replaced`."""
        return torch.as_tensor(new, dtype=torch.float64).clone()

    def merged(self, value: Callable[[], Any], new: Any, chosen: Collection[int]) -> Any:
        """See `Kept.merged`."""
        own, found = list(chosen), value().clone()
        found[own] = torch.as_tensor(new, dtype=torch.float64)[own]
        return found

    def bytes(self, blocks: Blocks, own: Sequence[Block]) -> int:
        """See `Kept.bytes`."""
        return 8 * len(blocks)

    def saved(self, value: Any) -> Any:
        """See `Kept.saved`."""
        return value.clone()


@dataclass(frozen=True)
class Factor(Kept):
    """A small fp32 tensor for each matrix.

    Args:
        size: From O and I to the tensor's shape.
        start: What all begin with.
    """

    size: Callable[[int, int], tuple[int, ...]]
    start: float = 0.0

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`: tensors by the index of a matrix."""
        return {
            index: torch.full(self.size(*block.shape), self.start, device=_device(block))
            for index, block in enumerate(blocks)
            if is_matrix(block)
        }

    def replaced(self, value: Any, new: Any) -> Any:
        """See `Kept.replaced`: of some matrices."""
        value.update({index: tensor.detach().clone() for index, tensor in new.items()})
        return value

    def seen(self, value: Any, chosen: Collection[int]) -> Any:
        """See `Kept.seen`."""
        return {index: tensor for index, tensor in value.items() if index in chosen}

    def merged(self, value: Callable[[], Any], new: Any, chosen: Collection[int]) -> Any:
        """See `Kept.merged`."""
        return self.seen(new, chosen)

    def bytes(self, blocks: Blocks, own: Sequence[Block]) -> int:
        """See `Kept.bytes`."""
        sizes = [self.size(*block.shape) for block in own if is_matrix(block)]
        return 4 * sum(int(torch.Size(size).numel()) for size in sizes)

    def saved(self, value: Any) -> Any:
        """See `Kept.saved`."""
        return {str(index): tensor.clone() for index, tensor in value.items()}

    def loaded(self, value: Any, saved: Mapping[Any, Tensor]) -> Any:
        """See `Kept.loaded`."""
        for index, tensor in saved.items():
            value[int(index)].copy_(tensor)
        return value


@dataclass(frozen=True)
class Number(Kept):
    """One number for the whole run.

    Args:
        start: What it begins with.
    """

    start: float = 0.0

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`."""
        return float(self.start)

    def replaced(self, value: Any, new: Any) -> Any:
        """See `Kept.replaced`."""
        return float(new)


@dataclass(frozen=True)
class Series(Kept):
    """Some numbers for the whole run, as many as the method likes; it begins with none."""

    def made(self, blocks: Blocks, weights: Callable[[int], Tensor] | None) -> Any:
        """See `Kept.made`."""
        return []

    def replaced(self, value: Any, new: Any) -> Any:
        """See `Kept.replaced`."""
        return [float(each) for each in new]

    def saved(self, value: Any) -> Any:
        """See `Kept.saved`."""
        return list(value)


class Buffers(list[Any]):
    """Tensors of the blocks [N], each made when it is first asked for; None until then.

    Args:
        count: N.
        make: Makes the tensor of a block, by its index.
    """

    def __init__(self, count: int, make: Callable[[int], Tensor]) -> None:
        super().__init__([None] * count)
        self._make = make

    def __getitem__(self, index: Any) -> Any:
        """Returns a block's tensor."""
        if isinstance(index, int) and super().__getitem__(index) is None:
            self[index] = self._make(index)
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        """Returns all tensors, made."""
        return (self[index] for index in range(len(self)))

    def made(self) -> list[Tensor | None]:
        """Returns those that were asked for, None in the place of others."""
        return list(super().__iter__())


def is_matrix(block: Block) -> bool:
    """Whether a block is a whole matrix, not a vector and not a slice."""
    return len(block.shape) == 2 and block.columns is None


def _device(block: Block) -> torch.device:
    # Weights of the meta device are those that accelerate fetches from CPU or disk.
    device = block.parameter.device
    return torch.device("cpu") if device.type == "meta" else device
