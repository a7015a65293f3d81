"""State: what a method keeps beside the weights, declared by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.engine.vector import Held, Vector


@dataclass(frozen=True)
class PerElement:
    """One fp32 number for each element of each block, beside its weights.

    Args:
        start: What all begin with.
    """

    start: float = 0.0


@dataclass(frozen=True)
class PerBlock:
    """One float64 number for each block.

    Args:
        start: What all begin with.
    """

    start: float = 0.0


@dataclass(frozen=True)
class Factor:
    """A small fp32 tensor for each matrix.

    Args:
        size: From O and I to the tensor's shape.
        start: What all begin with.
    """

    size: Callable[[int, int], tuple[int, ...]]
    start: float = 0.0


@dataclass(frozen=True)
class Number:
    """One number for the whole run.

    Args:
        start: What it begins with.
    """

    start: float = 0.0


@dataclass(frozen=True)
class Series:
    """Some numbers for the whole run, as many as the method likes; it begins with none."""


@dataclass(frozen=True)
class Start:
    """The weights that the run began with, of each block, as they are held."""


ANCHOR = "decay_to"
"""Name of the weights that weight decay draws to, where that is not zero."""
Kept = PerElement | PerBlock | Factor | Number | Series | Start


class State:
    """The state of a method, made when it is first asked for.

    Args:
        blocks: The blocks, [N].
        declared: Name to what is kept.
        weights: Returns a block's weights as they are, by its index; None where none are held.
    """

    def __init__(
        self,
        blocks: Blocks,
        declared: Mapping[str, Kept],
        weights: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.blocks, self.declared, self.weights = blocks, dict(declared), weights
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Returns a number, a tensor [N], tensors [N], or tensors by the index of a matrix."""
        if name not in self._values:
            self._values[name] = self._made(self.declared[name])
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Replaces a number or a tensor [N], or some tensors of matrices."""
        kept = self.declared[name]
        if isinstance(kept, PerElement | Start):
            raise TypeError(f"state {name!r} is changed by maps alone")
        if isinstance(kept, Factor):
            self[name].update({i: t.detach().clone() for i, t in value.items()})
        elif isinstance(kept, PerBlock):
            self._values[name] = torch.as_tensor(value, dtype=torch.float64).clone()
        elif isinstance(kept, Series):
            self._values[name] = [float(each) for each in value]
        else:
            self._values[name] = float(value)

    def begin(self, chosen: Collection[int]) -> None:
        """Takes the weights that blocks begin with, before a step that may be their first.

        Args:
            chosen: Indices of the blocks that the step is about.
        """
        for name, kept in self.declared.items():
            if isinstance(kept, Start):
                for index in chosen:
                    self[name][index]

    def change(self, name: str, value: Any, chosen: Collection[int] | None) -> None:
        """Replaces state as a step wants it, of the blocks that the step is about.

        Args:
            name: Its name.
            value: The new value.
            chosen: Indices of the blocks; None for all.
        """
        kept = self.declared[name]
        if chosen is not None and isinstance(kept, Factor):
            value = {index: tensor for index, tensor in value.items() if index in chosen}
        elif chosen is not None and isinstance(kept, PerBlock):
            own = list(chosen)
            value, new = self[name].clone(), torch.as_tensor(value, dtype=torch.float64)
            value[own] = new[own]
        self[name] = value

    def of(self, chosen: frozenset[int] | None) -> Chosen:
        """Returns the state as a step sees it that is about some blocks; None for all."""
        return Chosen(self, chosen)

    def bytes(self, chosen: Collection[int] | None = None) -> int:
        """Returns the memory that it takes once it has been made.

        Args:
            chosen: Indices of the blocks that the run is ever about; None for all.
        """
        total, own = 0, range(len(self.blocks)) if chosen is None else chosen
        blocks = [self.blocks[index] for index in own]
        for kept in self.declared.values():
            if isinstance(kept, PerElement):
                total += 4 * sum(block.numel for block in blocks)
            elif isinstance(kept, Start):
                flat = self.blocks.space == "adapter"
                sizes_of = (4 if flat else block.parameter.element_size() for block in blocks)
                total += sum(n * block.numel for n, block in zip(sizes_of, blocks, strict=True))
            elif isinstance(kept, PerBlock):
                total += 8 * len(self.blocks)
            elif isinstance(kept, Factor):
                sizes = [kept.size(*block.shape) for block in blocks if is_matrix(block)]
                total += 4 * sum(int(torch.Size(size).numel()) for size in sizes)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Returns all that has been made so far."""
        return {name: _copied(value) for name, value in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._values.clear()
        for name, value in state.items():
            kept = self.declared[name]
            if isinstance(kept, PerElement | Start):
                for index, loaded in enumerate(value):
                    if loaded is not None:
                        self[name][index].copy_(loaded)
            elif isinstance(kept, Factor):
                for index, loaded in value.items():
                    self[name][int(index)].copy_(loaded)
            else:
                self[name] = value

    def _made(self, kept: Kept) -> Any:
        if isinstance(kept, Number | Series):
            return float(kept.start) if isinstance(kept, Number) else []
        if isinstance(kept, PerBlock):
            return torch.full((len(self.blocks),), kept.start, dtype=torch.float64)
        if isinstance(kept, Start):
            weights = self.weights
            assert weights is not None
            return Buffers(len(self.blocks), lambda index: weights(index).detach().clone())
        if isinstance(kept, PerElement):
            blocks, start = self.blocks, kept.start

            def beside(index: int) -> Tensor:
                return torch.full(blocks[index].shape, start, device=_device(blocks[index]))

            return Buffers(len(blocks), beside)
        return {
            index: torch.full(kept.size(*block.shape), kept.start, device=_device(block))
            for index, block in enumerate(self.blocks)
            if is_matrix(block)
        }


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


class Chosen:
    """The state as a step sees it: of matrices and of blocks, what the step is about.

    Args:
        state: The state.
        chosen: Indices of the blocks; None for all.
    """

    def __init__(self, state: State, chosen: frozenset[int] | None) -> None:
        self._state, self._chosen = state, chosen

    def __getitem__(self, name: str) -> Any:
        """Returns a number, a tensor [N], tensors [N], or those of the matrices by index."""
        value = self._state[name]
        if self._chosen is not None and isinstance(value, dict):
            return {index: tensor for index, tensor in value.items() if index in self._chosen}
        return value

    def held(self, name: str) -> Vector:
        """Returns state of the size of the weights as a vector."""
        held = Held(self._state[name])
        return held if self._chosen is None else held.only(self._chosen)


def is_matrix(block: Block) -> bool:
    """Whether a block is a whole matrix, not a vector and not a slice."""
    return len(block.shape) == 2 and block.columns is None


def _device(block: Block) -> torch.device:
    # Weights of the meta device are those that accelerate fetches from CPU or disk.
    device = block.parameter.device
    return torch.device("cpu") if device.type == "meta" else device


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        value = value.made() if isinstance(value, Buffers) else value
        return [each.clone() if isinstance(each, Tensor) else each for each in value]
    if isinstance(value, dict):
        return {str(index): tensor.clone() for index, tensor in value.items()}
    return value.clone() if isinstance(value, Tensor) else value
