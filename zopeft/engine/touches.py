"""What sees a tensor being read: a module's table of parameters, and operations on memory."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zopeft.blocks import Block
from zopeft.blocks.memory import extent


class Fetches(dict[str, Any]):
    """A module's parameters that note which of them are asked for.

    Args:
        plain: The parameters.
        numbers: Indices of the blocks of each name.
        seen: Where they are noted.
    """

    def __init__(self, plain: dict[str, Any], numbers: dict[str, set[int]], seen: set[int]) -> None:
        super().__init__(plain)
        self.numbers, self.seen = numbers, seen

    def __getitem__(self, leaf: str) -> Any:
        self.seen |= self.numbers.get(leaf, set())
        return super().__getitem__(leaf)


class Touches(TorchFunctionMode):
    """Tells which blocks' memory the operations inside are given.

    Args:
        blocks: The blocks.
        note: Called with the blocks' indices, and whether a result holds more than a view.
    """

    def __init__(
        self, blocks: Iterable[Block], note: Callable[[frozenset[int], bool], None]
    ) -> None:
        super().__init__()
        found: dict[tuple[int, int], set[int]] = {}
        for number, block in enumerate(blocks):
            place = extent(block.parameter)
            if place is not None:
                found.setdefault((place.first, place.last), set()).add(number)
        self._spans = sorted((*span, frozenset(numbers)) for span, numbers in found.items())
        self._firsts = [first for first, _, _ in self._spans]
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "__get__":
            return result
        for numbers in {n for tensor in _tensors((args, kwargs)) if (n := self._find(tensor))}:
            made = [self._find(tensor) for tensor in _tensors(result)]
            self._note(numbers, any(other != numbers for other in made))
        return result

    def _find(self, tensor: Tensor) -> frozenset[int] | None:
        try:
            address = 0 if tensor.is_meta else tensor.data_ptr()
        except RuntimeError:
            return None
        at = bisect_right(self._firsts, address) - 1
        if at < 0 or address >= self._spans[at][1]:
            return None
        return self._spans[at][2]


def in_compiled() -> bool:
    """Whether a function that ``torch.compile`` has made is being run; also uncompiled."""
    frame = sys._getframe() if "torch._dynamo" in sys.modules else None
    while frame is not None:
        code = frame.f_code
        if code.co_name == "compile_wrapper" and "_dynamo" in code.co_filename:
            return True
        frame = frame.f_back
    return False


def uncompiled() -> AbstractContextManager[Any]:
    """Has compiled functions run as they were written, for a while."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
