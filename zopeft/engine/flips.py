"""Flips: one random direction under several patterns of signs.

Signs of rows and columns, ``S_k = r_k s_k^T``, make a direction for each part of a batch out of
one set of numbers u: ``u * S_k`` are uncorrelated for two k, and a linear layer needs u alone,
``x (u * S_k)^T = ((x * s_k) u^T) * r_k``.

References:
    Wen et al., "Flipout: Efficient Pseudo-Independent Weight Perturbations on Mini-Batches",
    2018, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zopeft.engine.vector import Vector
from zopeft.noise import Noise
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM

if TYPE_CHECKING:
    from zopeft.blocks import Block, Blocks
    from zopeft.engine.direction import Probe
    from zopeft.engine.elements import Part

NOISE = Noise("rademacher")


class Signs:
    """K patterns of signs of every block's rows and columns; the first is ones.

    Those of all blocks are drawn at once, at the first use on a device.

    Args:
        blocks: The blocks, [N], each read as a matrix of rows of its last dimension.
        key: 64-bit key.
        count: K.
    """

    def __init__(self, blocks: Blocks, key: int, count: int) -> None:
        self.blocks, self.key, self.count = blocks, key, count
        self._drawn: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def of(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns a block's patterns: of its rows [K, R], and of its columns [K, W], fp32."""
        if device not in self._drawn:
            sides = (self._side(0, LEFT_STREAM, device), self._side(1, RIGHT_STREAM, device))
            self._drawn[device] = list(zip(*sides, strict=True))
        rows, columns = self._drawn[device][index]
        block = self.blocks[index]
        return rows, columns if block.columns is None else columns[:, slice(*block.columns)]

    def _side(self, side: int, stream: int, device: torch.device) -> list[Tensor]:
        sizes = [_matrix(block)[side] for block in self.blocks]
        spans = [-(-size // NOISE.span) for size in sizes]
        counts = [span * (self.count - 1) for span in spans]
        counters = torch.cat([torch.arange(count, device=device) for count in counts])
        addresses = torch.tensor([block.address for block in self.blocks], device=device)
        addresses = addresses.repeat_interleave(torch.tensor(counts, device=device))
        drawn = NOISE.at_counters(self.key, counters, addresses, stream)
        parts = drawn.split([count * NOISE.span for count in counts])
        ones = torch.ones(1, max(sizes), device=device)
        return [
            torch.cat([ones[:, :size], part.view(self.count - 1, -1)[:, :size]])
            for part, size in zip(parts, sizes, strict=True)
        ]


def _matrix(block: Block) -> tuple[int, int]:
    shape = block.parameter.shape
    width = int(shape[-1]) if shape else 1
    return block.parameter.numel() // width, width


@dataclass(frozen=True, eq=False)
class Flips(Vector):
    """``sum_k c_k (r_k s_k^T) * u`` on every block.

    Args:
        base: u.
        signs: r and s.
        coefficients: c, [K].
    """

    base: Vector
    signs: Signs
    coefficients: tuple[float, ...]

    @classmethod
    def one(cls, base: Vector, signs: Signs, number: int) -> Flips:
        """Returns u under one pattern."""
        return cls(base, signs, tuple(float(k == number) for k in range(signs.count)))

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return self.base.touches(index)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return self.base.seeds

    @property
    def number(self) -> int:
        """Which pattern it is, of a vector that is a single one."""
        return self.coefficients.index(1.0)

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`; patterns are summed one by one, so the bits are those anywhere."""
        numbers = self.base.values(part)
        rows, columns = self.signs.of(part.index, numbers.device)
        factor: Tensor | None = None
        for k, coefficient in enumerate(self.coefficients):
            if coefficient:
                own = (rows[k][part.rows] * coefficient).unsqueeze(1) * columns[k]
                factor = own if factor is None else factor.add_(own)
        return numbers.zero_() if factor is None else numbers.mul_(factor)


def flips_of(probes: Sequence[Probe]) -> list[Flips] | None:
    """Returns the vectors of probes that are patterns of one u, at one step; None of others."""
    found = [vector for vector, _ in probes if isinstance(vector, Flips)]
    if len(found) < len(probes) or not found:
        return None
    first = found[0]
    same = all(vector.base is first.base and vector.signs is first.signs for vector in found)
    return found if same and len({step for _, step in probes}) == 1 else None
