"""Tracing: a map's function is run once, on symbols, to learn the formula of an element.

What a method writes down with tensors, `mul_`, `add_(x, alpha=a)`, `sqrt`, becomes a
`zopeft.kernels.formula.Formula`, which the kernels evaluate in one pass over the memory. A function
or a vector that does more than arithmetic of single elements (rows, products of matrices) cannot
be traced, and is run on tensors as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from zopeft.engine.direction import Direction
from zopeft.engine.elements import Elements, Part
from zopeft.engine.vector import Vector
from zopeft.kernels.formula import BUFFER, CONSTANT, NOISE, WEIGHT, Constants, Formula, Node

Buffers = Sequence[Tensor]
"""One tensor a block."""
Numbers = float | Sequence[float]
"""A constant: one for all blocks, or one a block."""


class UntraceableError(Exception):
    """Something that is not arithmetic of single elements."""


@dataclass
class Trace:
    """A formula in the making, and what its inputs stand for.

    Attributes:
        nodes: The nodes so far.
        buffers: Its buffers, of all blocks.
        noises: The keys of its noises.
        constants: Its constants.
    """

    nodes: list[Node] = field(default_factory=list)
    buffers: list[Buffers] = field(default_factory=list)
    noises: list[int] = field(default_factory=list)
    constants: list[Numbers] = field(default_factory=list)
    _places: dict[Node, int] = field(default_factory=dict)

    def node(self, name: str, *operands: int) -> Symbol:
        """Returns the symbol of a node, which is made where there is none like it."""
        node: Node = (name, *operands)
        if node not in self._places:
            self._places[node] = len(self.nodes)
            self.nodes.append(node)
        return Symbol(self, self._places[node])

    def constant(self, numbers: Numbers) -> Symbol:
        """Returns the symbol of a constant."""
        self.constants.append(numbers)
        return self.node(CONSTANT, len(self.constants) - 1)

    def buffer(self, tensors: Buffers) -> Symbol:
        """Returns the symbol of numbers that are held beside the weights."""
        return self.node(BUFFER, _place(self.buffers, lambda other: other is tensors, tensors))

    def noise(self, seed: int) -> Symbol:
        """Returns the symbol of a direction's z."""
        return self.node(NOISE, _place(self.noises, lambda other: other == seed, seed))

    def numbers(self, indices: Sequence[int]) -> Constants:
        """Returns the constants' numbers, fp32 [1, c], or [n, c] where some blocks have their own.

        Args:
            indices: The blocks' indices, [n].
        """
        own = any(not isinstance(numbers, float) for numbers in self.constants)
        count = len(indices) if own else 1
        columns = [
            [numbers] * count if isinstance(numbers, float) else [numbers[n] for n in indices]
            for numbers in self.constants
        ]
        return np.array(columns, dtype=np.float32).reshape(len(columns), count).T.copy()

    def operand(self, other: Any) -> int:
        """Returns the place of what a symbol is added to, multiplied with and so on.

        Raises:
            UntraceableError: It is neither a symbol nor a number.
        """
        if isinstance(other, Symbol):
            return other.place
        single = isinstance(other, Tensor) and other.ndim == 0
        if not single and not isinstance(other, int | float):
            raise UntraceableError
        return self.constant(float(other)).place


def _place(found: list[Any], same: Callable[[Any], bool], new: Any) -> int:
    for number, other in enumerate(found):
        if same(other):
            return number
    found.append(new)
    return len(found) - 1


class Symbol:
    """Stands for a tensor of numbers, one an element, in a function that is traced.

    It is changed in place where the tensor would be. What it has no method for cannot be traced.

    Args:
        trace: The trace.
        place: The place of its numbers among the nodes.
    """

    __array_ufunc__ = None

    def __init__(self, trace: Trace, place: int) -> None:
        self.trace, self.place = trace, place

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Does what a method of the same name does: ``torch.sqrt(x)`` is ``x.sqrt()``."""
        own = next((arg for arg in args if isinstance(arg, Symbol)), None)
        name = getattr(function, "__name__", "")
        if own is None or not (own is args[0] or name in ("add", "mul")):
            raise UntraceableError
        rest = [arg for arg in args if arg is not own] if own is not args[0] else args[1:]
        return getattr(own, name)(*rest, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """Finds ``mul_`` by ``mul``: the same, in place.

        Raises:
            UntraceableError: There is no such method.
        """
        changes = name.endswith("_") and not name.startswith("_")
        method = getattr(type(self), name[:-1], None) if changes else None
        if method is None:
            raise UntraceableError

        def changed(*args: Any, **kwargs: Any) -> Symbol:
            self.place = method(self, *args, **kwargs).place
            return self

        return changed

    def __bool__(self) -> bool:
        """Refuses to be one truth: it stands for many numbers.

        Raises:
            UntraceableError: Always.
        """
        raise UntraceableError

    def _do(self, name: str, *others: Any) -> Symbol:
        trace = self.trace
        return trace.node(name, self.place, *(trace.operand(other) for other in others))

    def clone(self) -> Symbol:
        """Returns the same numbers."""
        return Symbol(self.trace, self.place)

    def add(self, other: Any, *, alpha: float = 1.0) -> Symbol:
        """Returns ``self + alpha other``."""
        return self._do("add", _times(self.trace, other, alpha))

    def sub(self, other: Any, *, alpha: float = 1.0) -> Symbol:
        """Returns ``self - alpha other``."""
        return self._do("sub", _times(self.trace, other, alpha))

    def mul(self, other: Any) -> Symbol:
        """Returns ``self other``."""
        return self._do("mul", other)

    def div(self, other: Any) -> Symbol:
        """Returns ``self / other``."""
        return self._do("div", other)

    def addcmul(self, first: Symbol, second: Symbol, *, value: float = 1.0) -> Symbol:
        """Returns ``self + value first second``."""
        return self.add(first.mul(second), alpha=value)

    def addcdiv(self, first: Symbol, second: Symbol, *, value: float = 1.0) -> Symbol:
        """Returns ``self + value first / second``."""
        return self.add(first.div(second), alpha=value)

    def neg(self) -> Symbol:
        """Returns ``-self``."""
        return self.mul(-1.0)

    def square(self) -> Symbol:
        """Returns ``self self``."""
        return self.mul(self)

    def sqrt(self) -> Symbol:
        """Returns the root."""
        return self._do("sqrt")

    def abs(self) -> Symbol:
        """Returns the size."""
        return self._do("abs")

    def sign(self) -> Symbol:
        """Returns the sign: 1, 0 or -1."""
        return self._do("sign")

    def clamp(self, min: float | None = None, max: float | None = None) -> Symbol:
        """Returns the nearest number that is at least `min` and at most `max`."""
        found = self if min is None else self._do("most", min)
        return found if max is None else found._do("least", max)

    def __add__(self, other: Any) -> Symbol:
        """See `add`."""
        return self.add(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Symbol:
        """See `sub`."""
        return self.sub(other)

    def __rsub__(self, other: Any) -> Symbol:
        """See `sub`."""
        return self.trace.constant(float(other)).sub(self)

    def __mul__(self, other: Any) -> Symbol:
        """See `mul`."""
        return self.mul(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Symbol:
        """See `div`."""
        return self.div(other)

    def __neg__(self) -> Symbol:
        """See `neg`."""
        return self.neg()

    def __le__(self, other: Any) -> Symbol:
        """Returns 1 where ``self <= other``, else 0."""
        return self._do("at_most", other)


def _times(trace: Trace, other: Any, factor: float) -> Any:
    if factor == 1.0:
        return other
    return other.mul(factor) if isinstance(other, Symbol) else float(other) * factor


def _scaled(trace: Trace, direction: Direction) -> Symbol:
    """Returns ``scale z`` of a direction."""
    found = trace.noise(direction.seed)
    if direction.scales is None:
        return found
    return found.mul(trace.constant(direction.scales.float().tolist()))


class TracedPart(Part):
    """A part whose numbers are symbols.

    Args:
        elements: What makes numbers.
        index: The block's index; that of the first one, where a trace is of several.
        trace: The trace.
    """

    def __init__(self, elements: Elements, index: int, trace: Trace) -> None:
        for name, value in (("elements", elements), ("index", index), ("trace", trace)):
            object.__setattr__(self, name, value)

    trace: Trace

    def __getattr__(self, name: str) -> Any:
        """Refuses what is none of a single element's business, rows and stored weights.

        Raises:
            UntraceableError: Always.
        """
        raise UntraceableError

    def weight(self) -> Any:
        """See `Part.weight`."""
        return self.trace.node(WEIGHT)

    def noise(self, direction: Direction) -> Any:
        """See `Part.noise`."""
        return _scaled(self.trace, direction)

    def held(self, tensors: Buffers) -> Any:
        """See `Part.held`."""
        return self.trace.buffer(tensors)

    def each(self, numbers: Sequence[float]) -> Any:
        """See `Part.each`."""
        return self.trace.constant(numbers)

    def zeros(self) -> Any:
        """See `Part.zeros`."""
        return self.trace.constant(0.0)


def descent(
    directions: Sequence[Direction], coefficients: Tensor, decays: Tensor
) -> tuple[Formula, Trace]:
    """Returns the formula of ``decay w + sum_k coefficient_k u_k``, and what it is made of.

    Its operations are those of the kernels for one direction, so it has their bits.

    Args:
        directions: u, [K].
        coefficients: float64 [K, N].
        decays: float64 [N].
    """
    trace = Trace()
    weight = trace.node(WEIGHT)
    if bool((decays != 1.0).any()):
        weight = weight.mul(trace.constant(decays.tolist()))
    for direction, own in zip(directions, coefficients, strict=True):
        u = _scaled(trace, direction)
        weight = weight.add(u.mul(trace.constant(own.tolist())))
    return Formula(tuple(trace.nodes), weight.place, ()), trace


def traced(
    elements: Elements,
    index: int,
    function: Callable[..., tuple[Any, ...]],
    vectors: Sequence[Vector],
    buffers: Sequence[Buffers],
    decays: Numbers,
) -> tuple[Formula, Trace] | None:
    """Returns the formula of a map, and what it is made of; None where it has none.

    Args:
        elements: What makes the numbers of vectors.
        index: The block's index.
        function: The map's, see `zopeft.engine.maps.map_weights`.
        vectors: Its vectors.
        buffers: Its state.
        decays: What the weights are multiplied by first.
    """
    trace = Trace()
    part = TracedPart(elements, index, trace)
    try:
        own = [trace.buffer(each) for each in buffers]
        values = [vector.values(part) for vector in vectors]
        shown = trace.node(WEIGHT)
        if decays != 1.0:
            shown.mul_(trace.constant(decays))
        new = function(index, shown, *values, *own)
        places = [trace.operand(value) for value in new]
    except Exception:
        # Whatever it was: on tensors, the function says it itself.
        return None
    if len(places) != 1 + len(buffers) or len({id(each) for each in buffers}) < len(buffers):
        return None
    kept = (*places[1:], *(None for _ in trace.buffers[len(buffers) :]))
    return Formula(tuple(trace.nodes), places[0], kept), trace
