"""Picked: a direction on some elements of each block, and zero on all others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zopeft.engine.direction import Direction
from zopeft.engine.vector import Vector

if TYPE_CHECKING:
    from zopeft.engine.elements import Part


@dataclass(frozen=True, eq=False)
class Picked(Vector):
    """``u_e = z_e`` where e is picked, else 0; only the numbers that are picked are made.

    Args:
        base: z.
        places: Block index to its picked elements, int64 [n], ascending, on the CPU; blocks
            absent are not touched.
    """

    base: Direction
    places: Mapping[int, Tensor]

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return index in self.places and self.base.touches(index)

    def only(self, indices: Collection[int]) -> Picked:
        """See `Vector.only`."""
        return replace(self, base=self.base.only(indices))

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return self.base.seeds

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        block = part.elements.blocks[part.index]
        places, width = self.places[part.index], part.shape[1]
        numbers = torch.zeros(part.shape, device=part.device)
        rows, columns = places // width, places % width
        if isinstance(part.rows, Tensor):
            wanted, order = part.rows.cpu().sort()
            at = torch.searchsorted(wanted, rows).clamp(max=max(0, len(wanted) - 1))
            inside = wanted[at] == rows if len(wanted) else torch.zeros_like(rows, dtype=torch.bool)
            here = order[at[inside]]
        else:
            inside = (rows >= part.rows.start) & (rows < part.rows.stop)
            here = rows[inside] - part.rows.start
        if block.columns is not None or part.index in part.elements.forms:
            own = self.base.values(part)
            picked = own[here.to(part.device), columns[inside].to(part.device)]
        else:
            picked = self._drawn(part, places[inside].to(part.device))
        numbers[here.to(part.device), columns[inside].to(part.device)] = picked
        return numbers

    def _drawn(self, part: Part, places: Tensor) -> Tensor:
        """Returns ``scale * z`` of some elements of a block, fp32 [n]."""
        noise, address = part.elements.kernels.noise, part.elements.blocks[part.index].address
        counters, numbers = (places // noise.span).unique(return_inverse=True)
        drawn = noise.at_counters(self.base.seed, counters, address).view(-1, noise.span)
        found = drawn[numbers, places % noise.span]
        scales = self.base.scales
        return found if scales is None else found * scales[part.index].to(found.device)
