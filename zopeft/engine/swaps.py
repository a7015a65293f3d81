"""Scratch weights in the places of modules' own, for a forward or for a whole probe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine.arena import returns_new_memory
from zopeft.engine.scratch import Scratch
from zopeft.engine.tied import View, turned, views_of
from zopeft.engine.twins import Twins, room


@dataclass
class Place:
    """One tensor of one module: where a block's weights are read from.

    Attributes:
        view: How it reads them where that is another layout than the block's.
    """

    module: nn.Module
    leaf: str
    number: int
    view: View | None = None


class Swaps:
    """Puts twins where blocks are read, and takes them away again.

    Args:
        blocks: The blocks, [n]; none of them a slice.
        twins: What makes the twins.
        offload: The model's offloaded tensors.

    Attributes:
        places: Each module's places.
    """

    def __init__(self, blocks: Sequence[Block], twins: Twins, offload: Offload) -> None:
        self.blocks, self.twins, self.offload = blocks, twins, offload
        self.places: dict[nn.Module, list[Place]] = {}
        for number, block in enumerate(blocks):
            for owner in block.owners:
                view = None if offload.holds(block) else turned(block, owner)
                place = Place(owner.module, owner.leaf, number, view)
                self.places.setdefault(owner.module, []).append(place)
        self._turned = {p.number for own in self.places.values() for p in own if p.view}
        self._sources: dict[int, nn.Parameter] = {}

    def begin(self) -> None:
        """Begins a probe, while all modules hold their own weights."""
        # A resident layer holds a scratch, from which no other must be made.
        self._sources = {number: self.blocks[number].parameter for number in self._turned}

    def moved(self, module: nn.Module) -> list[Place]:
        """Returns the places of a module that the probe moves."""
        return [place for place in self.places[module] if self.twins.touches(place.number)]

    @contextmanager
    def swapped(
        self,
        places: Iterable[Place],
        product: bool = True,
        exact: bool = False,
        alone: bool = False,
    ) -> Iterator[list[Scratch]]:
        """Puts scratch weights in place of the modules' own.

        Args:
            places: The places.
            product: Whether products of factors are part of them.
            exact: Whether they are fp32 ones.
            alone: Whether it is for one layer's forward, inside which no other's runs.
        """
        kept: list[tuple[Place, Tensor]] = []
        made: list[Scratch] = []
        at = 0
        try:
            for place in places:
                weight = place.module._parameters.get(place.leaf)
                assert weight is not None
                reuse, view = returns_new_memory(place.module), place.view
                source = weight if view is None else self._sources[place.number]
                memory = None
                if reuse and alone:
                    memory = self.twins.memory_for(source.detach(), at)
                    at += room(source)
                scratch = self.twins.make(
                    place.number,
                    source,
                    reuse=reuse,
                    product=product,
                    exact=exact,
                    memory=memory,
                )
                kept.append((place, weight))
                made.append(scratch)
                shown = scratch.weight if view is None else view.of(scratch.weight)
                place.module._parameters[place.leaf] = shown  # type: ignore[assignment]
            yield made
        finally:
            for place, own in kept:
                place.module._parameters[place.leaf] = own  # type: ignore[assignment]
            self.twins.free(made)

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Puts twins of all weights in the parameters' place, where compiled code finds them."""
        kept: list[tuple[nn.Parameter, Tensor]] = []
        made: list[Scratch] = []
        try:
            for number, block in enumerate(self.blocks):
                if not self.twins.touches(number):
                    continue
                own, others = block.parameter, list(views_of(block))
                with torch.no_grad():
                    scratch = self.twins.make(number, own, reuse=True)
                made.append(scratch)
                for parameter, view in ((own, None), *others):
                    kept.append((parameter, parameter.data))
                    shown = scratch.weight
                    parameter.data = shown if view is None else view.of(shown)
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data
            self.twins.free(made)
