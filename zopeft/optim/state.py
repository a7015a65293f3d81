"""State: what a method keeps beside the weights, declared by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.engine.vector import Held


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


Kept = PerElement | PerBlock | Factor | Number | Series


class State:
    """The state of a method, made when it is first asked for.

    Args:
        blocks: The blocks, [N].
        declared: Name to what is kept.
    """

    def __init__(self, blocks: Blocks, declared: Mapping[str, Kept]) -> None:
        self.blocks, self.declared = blocks, dict(declared)
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Returns a number, a tensor [N], tensors [N], or tensors by the index of a matrix."""
        if name not in self._values:
            self._values[name] = self._made(self.declared[name])
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Replaces a number or a tensor [N], or some tensors of matrices."""
        kept = self.declared[name]
        if isinstance(kept, PerElement):
            raise TypeError(f"state {name!r} is changed by maps alone")
        if isinstance(kept, Factor):
            self[name].update({i: t.detach().clone() for i, t in value.items()})
        elif isinstance(kept, PerBlock):
            self._values[name] = torch.as_tensor(value, dtype=torch.float64).clone()
        elif isinstance(kept, Series):
            self._values[name] = [float(each) for each in value]
        else:
            self._values[name] = float(value)

    def held(self, name: str) -> Held:
        """Returns state of the size of the weights as a vector."""
        return Held(self[name])

    def bytes(self) -> int:
        """Returns the memory that all of it takes once it has been made."""
        total = 0
        for kept in self.declared.values():
            if isinstance(kept, PerElement):
                total += 4 * self.blocks.numel
            elif isinstance(kept, PerBlock):
                total += 8 * len(self.blocks)
            elif isinstance(kept, Factor):
                sizes = [kept.size(*block.shape) for block in self.blocks if is_matrix(block)]
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
            if isinstance(kept, PerElement):
                for own, loaded in zip(self[name], value, strict=True):
                    own.copy_(loaded)
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
        if isinstance(kept, PerElement):
            return [torch.full(b.shape, kept.start, device=_device(b)) for b in self.blocks]
        return {
            index: torch.full(kept.size(*block.shape), kept.start, device=_device(block))
            for index, block in enumerate(self.blocks)
            if is_matrix(block)
        }


def is_matrix(block: Block) -> bool:
    """Whether a block is a whole matrix, not a vector and not a slice."""
    return len(block.shape) == 2 and block.columns is None


def _device(block: Block) -> torch.device:
    # Weights of the meta device are those that accelerate fetches from CPU or disk.
    device = block.parameter.device
    return torch.device("cpu") if device.type == "meta" else device


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [each.clone() if isinstance(each, Tensor) else each for each in value]
    if isinstance(value, dict):
        return {str(index): tensor.clone() for index, tensor in value.items()}
    return value.clone() if isinstance(value, Tensor) else value
