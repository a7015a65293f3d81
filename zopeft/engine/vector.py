"""Vectors over a model's weights: what a probe is moved along, and what an update is made of.

A vector is an expression, not a tensor: its numbers are made part by part, where they are
needed, so a sum of many directions costs no memory. The plain case, one addressed direction,
has fast kernels of its own (`Vector.plain`); everything else is evaluated in fp32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, from_numpy

if TYPE_CHECKING:
    from zopeft.engine.direction import Direction
    from zopeft.engine.elements import Part


class Vector(ABC):
    """Numbers for every element of some blocks: ``2.0 * u + m`` is a vector again."""

    @property
    def plain(self) -> Direction | None:
        """The addressed direction that this is and nothing else; None for all others."""
        return None

    def touches(self, index: int) -> bool:
        """Whether a block is part of the vector; elsewhere it is zero and costs nothing."""
        return True

    def spans(self, indices: Sequence[int]) -> bool:
        """Whether `values` can be asked for some whole blocks at once.

        Args:
            indices: The blocks' indices; none of them has a shape.
        """
        return False

    @abstractmethod
    def values(self, part: Part) -> Tensor:
        """Returns the vector's numbers on a part of a block, fp32 [n, W], free to be changed."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the directions it is made of."""
        return ()

    def at(self, step: float) -> tuple[Vector, float]:
        """Returns the probe ``theta + step * self``."""
        return self, step

    def only(self, indices: Collection[int]) -> Vector:
        """Returns the vector restricted to some blocks.

        Args:
            indices: Indices of the blocks that stay.
        """
        return Restricted(self, frozenset(indices))

    def __add__(self, other: Vector) -> Vector:
        """Returns the sum."""
        return Sum((*terms_of(self), *terms_of(other)))

    def __sub__(self, other: Vector) -> Vector:
        """Returns the difference."""
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> Vector:
        """Returns the vector times a number."""
        return Sum(tuple((factor * own, vector) for own, vector in terms_of(self)))


@dataclass(frozen=True, eq=False)
class Sum(Vector):
    """``sum_k coefficient_k vector_k``.

    Args:
        terms: Coefficients and vectors, [K].
    """

    terms: tuple[tuple[float, Vector], ...]

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return any(vector.touches(index) for _, vector in self.terms)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return tuple(seed for _, vector in self.terms for seed in vector.seeds)

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`: where each term touches all of the blocks, or none."""
        for _, vector in self.terms:
            touched = [vector.touches(index) for index in indices]
            if any(touched) and not (all(touched) and vector.spans(indices)):
                return False
        return True

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        total: Tensor | None = None
        for coefficient, vector in self.terms:
            if vector.touches(part.index):
                term = vector.values(part).mul_(coefficient)
                total = term if total is None else total.add_(term)
        return part.zeros() if total is None else total


@dataclass(frozen=True, eq=False)
class Restricted(Vector):
    """A vector on some blocks alone.

    Args:
        vector: The vector.
        indices: Indices of the blocks that stay.
    """

    vector: Vector
    indices: frozenset[int]

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return index in self.indices and self.vector.touches(index)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return self.vector.seeds

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`."""
        return self.indices.issuperset(indices) and self.vector.spans(indices)

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return self.vector.values(part)


@dataclass(frozen=True, eq=False)
class Held(Vector):
    """Numbers that are held in memory, such as a momentum.

    Args:
        tensors: fp32, one a block in the block's shape, [N].
    """

    tensors: Sequence[Tensor]

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`."""
        return True

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return part.held(self.tensors)


@dataclass(frozen=True, eq=False)
class Elementwise(Vector):
    """``function(weight, *values)``, element by element.

    Args:
        function: From the unperturbed weights of a part and the numbers of the vectors, all
            fp32 [n, W], to new ones. It must not change the weights.
        vectors: The vectors that it reads.
    """

    function: Callable[..., Tensor]
    vectors: tuple[Vector, ...]

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return all(vector.touches(index) for vector in self.vectors)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return tuple(seed for vector in self.vectors for seed in vector.seeds)

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`."""
        return all(vector.spans(indices) for vector in self.vectors)

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return self.function(part.weight(), *(vector.values(part) for vector in self.vectors))


@dataclass(frozen=True, eq=False)
class Rowwise(Vector):
    """What a function makes of each row of a vector's numbers.

    Args:
        function: From a block's index and numbers [n, W], which it may change, to new ones.
        vector: The vector.
    """

    function: Callable[[int, Tensor], Tensor]
    vector: Vector

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return self.vector.touches(index)

    @property
    def seeds(self) -> tuple[int, ...]:
        """See `Vector.seeds`."""
        return self.vector.seeds

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return self.function(part.index, self.vector.values(part))


@dataclass(frozen=True, eq=False)
class Computed(Vector):
    """Numbers that a function makes for a part of a block, such as rows of a product.

    Args:
        function: From a block's index and rows (a slice, or row numbers) to fp32 [n, W], also
            where a process holds a part of the block: it is then asked for whole rows.
        indices: Indices of the blocks that it knows.
    """

    function: Callable[[int, slice | Tensor], Tensor]
    indices: frozenset[int]

    def touches(self, index: int) -> bool:
        """See `Vector.touches`."""
        return index in self.indices

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        shard = part.elements.blocks[part.index].shard
        if shard is None:
            return self.function(part.index, part.rows)
        numbers = self.function(part.index, from_numpy(shard.rows_of(part.rows)).to(part.device))
        return numbers[:, slice(*shard.columns)].contiguous()


@dataclass(frozen=True, eq=False)
class Each(Vector):
    """One number a block, the same for all of its elements.

    Args:
        numbers: [N].
    """

    numbers: Sequence[float]

    def spans(self, indices: Sequence[int]) -> bool:
        """See `Vector.spans`."""
        return True

    def values(self, part: Part) -> Tensor:
        """See `Vector.values`."""
        return part.each(self.numbers)


def first_seed(vector: Vector) -> int:
    """Returns the seed that a probe along a vector is rounded by: that of its first direction."""
    seeds = vector.seeds
    return seeds[0] if seeds else 0


def terms_of(vector: Vector) -> tuple[tuple[float, Vector], ...]:
    """Returns the coefficients and vectors that a vector is the sum of."""
    return vector.terms if isinstance(vector, Sum) else ((1.0, vector),)


ZERO = Sum(())
"""The zero vector: a probe along it looks at the weights themselves."""
HERE: tuple[Any, float] = (ZERO, 0.0)
"""The probe at the weights themselves."""
