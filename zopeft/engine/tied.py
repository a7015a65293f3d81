"""Tied weights that are views of each other: one tensor, read in several layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from zopeft.blocks import Block, Owner
from zopeft.errors import input_error


@dataclass(frozen=True)
class View:
    """How a tied parameter lies in the memory of its block's first one.

    Attributes:
        shape: Its own shape.
        strides: Its own strides; None where it lies as the first one does.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None

    def of(self, first: Tensor) -> Tensor:
        """Returns the view of a tensor that takes the first parameter's place."""
        if self.strides is None:
            return first.view(self.shape)
        return first.as_strided(self.shape, self.strides, first.storage_offset())


def view_of(block: Block, owner: Owner) -> View:
    """Returns how an owner of a block reads its tensor.

    Raises:
        InputError: It reads it in another layout than the block's, which is not in order.
    """
    first, own = block.parameter, _parameter(owner)
    shape = tuple(own.shape)
    if (own.shape, own.stride()) == (first.shape, first.stride()):
        return View(shape, None)
    if not first.is_contiguous():
        raise input_error(
            block.name,
            "is tied to a view of another layout, and neither lies in order",
            f"{owner.module_name}.{owner.leaf}",
            "make it contiguous before it is tied",
        )
    return View(shape, own.stride())


def views_of(block: Block) -> Iterator[tuple[nn.Parameter, View]]:
    """Yields the parameters tied to a block's own that are other objects, each once."""
    seen = {id(block.parameter)}
    for owner in block.owners[1:]:
        other = _parameter(owner)
        if id(other) not in seen:
            seen.add(id(other))
            yield other, view_of(block, owner)


def turned(block: Block, owner: Owner) -> View | None:
    """Returns the view of an owner that reads a block in another layout; None for others."""
    if _parameter(owner) is block.parameter:
        return None
    view = view_of(block, owner)
    return None if view.strides is None else view


def _parameter(owner: Owner) -> nn.Parameter:
    found = owner.module._parameters.get(owner.leaf)
    assert found is not None
    return found
