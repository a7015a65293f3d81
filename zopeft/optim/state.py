"""State: what a method keeps beside the weights, declared by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine.vector import Held, Vector
from zopeft.optim.kinds import (
    Factor,
    Kept,
    Number,
    PerBlock,
    PerElement,
    Series,
    Start,
    is_matrix,
)

__all__ = [
    "ANCHOR",
    "Chosen",
    "Factor",
    "Kept",
    "Number",
    "PerBlock",
    "PerElement",
    "Series",
    "Start",
    "State",
    "is_matrix",
]

ANCHOR = "decay_to"
"""Name of the weights that weight decay draws to, where that is not zero."""


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
            self._values[name] = self.declared[name].made(self.blocks, self.weights)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Replaces a number or a tensor [N], or some tensors of matrices.

        Raises:
            TypeError: It is state that maps alone can change.
        """
        try:
            self._values[name] = self.declared[name].replaced(self[name], value)
        except TypeError as error:
            raise TypeError(f"state {name!r}: {error}") from error

    def begin(self, chosen: Collection[int]) -> None:
        """Takes the weights that blocks begin with, before a step that may be their first.

        Args:
            chosen: Indices of the blocks that the step is about.
        """
        for name, kept in self.declared.items():
            kept.begin(lambda name=name: self[name], chosen)  # type: ignore[misc]

    def change(self, name: str, value: Any, chosen: Collection[int] | None) -> None:
        """Replaces state as a step wants it, of the blocks that the step is about.

        Args:
            name: Its name.
            value: The new value.
            chosen: Indices of the blocks; None for all.
        """
        if chosen is not None:
            value = self.declared[name].merged(lambda: self[name], value, chosen)
        self[name] = value

    def of(self, chosen: frozenset[int] | None) -> Chosen:
        """Returns the state as a step sees it that is about some blocks; None for all."""
        return Chosen(self, chosen)

    def bytes(self, chosen: Collection[int] | None = None) -> int:
        """Returns the memory that it takes once it has been made.

        Args:
            chosen: Indices of the blocks that the run is ever about; None for all.
        """
        own = range(len(self.blocks)) if chosen is None else chosen
        blocks = [self.blocks[index] for index in own]
        return sum(kept.bytes(self.blocks, blocks) for kept in self.declared.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns all that has been made so far."""
        return {name: self.declared[name].saved(value) for name, value in self._values.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self._values.clear()
        for name, value in state.items():
            self._values[name] = self.declared[name].loaded(self[name], value)


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
        if self._chosen is None:
            return value
        return self._state.declared[name].seen(value, self._chosen)

    def held(self, name: str) -> Vector:
        """Returns state of the size of the weights as a vector."""
        held = Held(self._state[name])
        return held if self._chosen is None else held.only(self._chosen)
