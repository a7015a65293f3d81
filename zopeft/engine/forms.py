"""The forms of a step: what each shaped block's direction is made of, from its seed."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.engine.direction import Direction
from zopeft.engine.shapes import Shape
from zopeft.errors import input_error
from zopeft.kernels.form import Factors, Form
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM

Key = tuple[int, int]
"""The seed of a direction, and that of what its shapes keep."""
KEPT = 2
"""Seeds whose kept numbers are held: those of now, and of before the last renewal."""


class Forms:
    """Makes the forms of shaped blocks; the factors of the last few directions are kept.

    The factors of all blocks on a device are drawn at once, at the first use of a step.

    Args:
        blocks: The blocks, [N].
        shapes: Block index to shape; blocks absent are isotropic.
        kernels: What makes noise.

    Attributes:
        kept: Of how many directions, as many as a step has.
        chosen: Indices of the blocks that a step is about, whose numbers are drawn at once; None
            for all.

    Raises:
        InputError: A shape does not fit its block, or there is no such block.
    """

    def __init__(self, blocks: Blocks, shapes: Mapping[int, Shape], kernels: PlainKernels) -> None:
        self.kernels = kernels
        self.blocks: dict[int, Block] = {}
        self.shapes: dict[int, Shape] = {}
        self._homes: dict[int, torch.device] = {}
        self._row_scales: dict[int, Tensor | None] = {}
        self._shares: dict[int, float | None] = {}
        for index, shape in sorted(shapes.items()):
            if not 0 <= index < len(blocks):
                raise input_error("shapes", f"there are {len(blocks)} blocks", index)
            block = blocks[index]
            shape.check(block)
            # Weights of the meta device are those that accelerate fetches from CPU or disk.
            device = block.parameter.device
            home = torch.device("cpu") if device.type == "meta" else device
            self.blocks[index], self._homes[index] = block, home
            self.shapes[index] = shape.to(home)
            rows = self._row_scales[index] = self.shapes[index].row_scales(block.shape[0], home)
            alike = rows is not None and block.shard is None and bool((rows == rows[0]).all())
            self._shares[index] = float(rows[0]) if rows is not None and alike else None
        self.kept = 1
        self.chosen: Collection[int] | None = None
        self._factors: dict[Key, dict[int, Factors | None]] = {}
        self._kept: dict[int, dict[int, Any]] = {}

    def __contains__(self, index: object) -> bool:
        return index in self.shapes

    def noisy(self, index: int) -> bool:
        """Whether isotropic noise is part of a block's u."""
        return index not in self.shapes or self.shapes[index].noisy

    def share(self, index: int) -> float | None:
        """Returns what the noise of all rows of a block is multiplied by before its scale.

        An fp32 number; None where rows differ, where there is no noise, or for a shard.
        """
        return self._shares[index] if index in self.shapes else 1.0

    def has_product(self, index: int) -> bool:
        """Whether a product of factors is part of a block's u."""
        if index not in self.shapes:
            return False
        return self.shapes[index].sizes(*self.blocks[index].shape) != (0, 0)

    def of(self, index: int, direction: Direction, device: torch.device) -> Form:
        """Returns a shaped block's form under a direction, its scale multiplied in.

        Args:
            index: The block's index.
            direction: The direction.
            device: Where it is needed.
        """
        scale = None if direction.scales is None else direction.scales[index].to(device)
        rows = self._row_scales[index]
        factors = self.factors(index, direction)
        if rows is not None:
            rows = rows.to(device)
            rows = rows if scale is None else rows * scale
        if factors is not None:
            left, right = factors[0].to(device), factors[1].to(device)
            factors = (left if scale is None else left * scale, right)
        form, shard = Form(rows, factors), self.blocks[index].shard
        if shard is None:
            return form
        return form.cut(torch.from_numpy(shard.rows), slice(*shard.columns))

    def factors(self, index: int, direction: Direction) -> Factors | None:
        """Returns left [O, r] and right [r, I] of a block, where its shape is kept, fp32."""
        key = (direction.seed, direction.kept)
        found = self._factors.setdefault(key, {})
        while len(self._factors) > self.kept:
            del self._factors[next(iter(self._factors))]
        if index not in found:
            self._draw(index, key)
        return found[index]

    def pair(self, index: int, direction: Direction) -> Factors:
        """Returns `factors` of a block whose direction is a product."""
        found = self.factors(index, direction)
        assert found is not None
        return found

    def kept_of(self, index: int, seed: int) -> Any:
        """Returns what a block's shape keeps for some steps (`Shape.keep`).

        Args:
            index: The block's index.
            seed: 64-bit key that it is drawn from.
        """
        found = self._kept.setdefault(seed, {})
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        if index not in found:
            indices, sides = self._numbers(index, seed, Shape.kept_sizes.__name__, found)
            for other in indices:
                rows, columns = self.blocks[other].shape
                left, right = (side[other] for side in sides)
                found[other] = self.shapes[other].keep(left, right, rows, columns)
        return found[index]

    def drawn(self, index: int, seed: int) -> Tensor:
        """Returns the numbers that a block's left factor is made from (`Shape.sizes`), fp32."""
        size = self.shapes[index].sizes(*self.blocks[index].shape)[0]
        tensors, device = [(self.blocks[index].address, size)], self._homes[index]
        return self.kernels.draw(seed, LEFT_STREAM, tensors, device)[0]

    def _draw(self, first: int, key: Key) -> None:
        (seed, kept), found = key, self._factors[key]
        indices, (lefts, rights) = self._numbers(first, seed, Shape.sizes.__name__, found)
        for index in indices:
            shape, (rows, columns) = self.shapes[index], self.blocks[index].shape
            keeps = shape.kept_sizes(rows, columns) != (0, 0)
            own = self.kept_of(index, kept) if keeps else None
            left, right = lefts[index], rights[index]
            found[index] = shape.join(left, right, rows, columns, own)

    def _numbers(
        self, first: int, seed: int, sizes: str, found: Container[int]
    ) -> tuple[list[int], list[dict[int, Tensor]]]:
        """Draws what a block asks for, and those beside it on its device that the step is about.

        Returns:
            Their indices; left and right numbers of each.
        """
        device = self._homes[first]
        indices = [
            index
            for index, home in self._homes.items()
            if home == device
            and index not in found
            and (index == first or self.chosen is None or index in self.chosen)
        ]
        sides = []
        for side, stream in ((0, LEFT_STREAM), (1, RIGHT_STREAM)):
            wanted = {
                index: size
                for index in indices
                if (size := getattr(self.shapes[index], sizes)(*self.blocks[index].shape)[side])
            }
            tensors = [(self.blocks[index].address, size) for index, size in wanted.items()]
            noise = self.kernels.draw(seed, stream, tensors, device)
            nothing = {index: torch.empty(0, device=device) for index in indices}
            sides.append(nothing | dict(zip(wanted, noise, strict=True)))
        return indices, sides
