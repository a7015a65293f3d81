"""Which blocks the forward passes of a step read.

A loss does not depend on what no forward pass has read: its part of the estimate is zero,
and what the step would do to it is noise alone. Such are towers for other kinds of input,
experts that no token has reached, heads and layers that are left out. They are left alone.

In the first step everything is watched. A block counts as read if it was asked for by name,
or if an operation was given its memory; so what a kernel does out of sight with a weight
that it has been given is no matter. Where nothing was seen to be read at all, the forward
passes run where nobody can look, and all counts as read. From the second step on only those
are watched of which the first has missed some (with their likes in other layers), and
experts: all others are taken to be read by every step.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zopeft.blocks import Block, Blocks
from zopeft.blocks.memory import extent
from zopeft.blocks.scales import ScaleHolder

EXPERT = re.compile(r"(^|\.)experts\.[^.]*\d")
"""Where modules lie of which a router chooses a few."""
SHOWN = 4
"""Places of unread blocks that a line names."""


class Reads:
    """Watches the forward passes of a run's steps.

    Args:
        blocks: The blocks to train, [N].

    Attributes:
        watched: Indices of the blocks that a step may not read; None before the first step.
        latest: Indices of those that the latest probe has read, as far as it was watched.
        outside: Of those that the latest probe has read outside of their modules' forward.
        touching: Whether operations are watched, too.
        compiled: Whether the forward passes run compiled code. It cannot be watched; steps
            after the first then leave alone what that has not read, nor its like anywhere.
        agree: Makes a mask of read blocks [N] that of all processes of a run; None for one.
    """

    def __init__(self, blocks: Blocks) -> None:
        self.watched: frozenset[int] | None = None
        self.latest: set[int] = set()
        self.outside: set[int] = set()
        self.touching = False
        self.compiled = False
        self.agree: Callable[[Tensor], Tensor] | None = None
        self._blocks = list(blocks)
        self._counting = False
        self._seen: set[int] = set()
        self._own: list[frozenset[int]] = []
        self._first: frozenset[int] = frozenset()

    def begin(self) -> None:
        """Begins a step."""
        self._counting = True
        self._seen = set()

    def missed(self) -> frozenset[int]:
        """Ends a step; returns the indices of the blocks that none of its forwards has read."""
        self._counting = False
        everything = frozenset(range(len(self._blocks)))
        candidates = everything if self.watched is None else self.watched
        if self.compiled and self.watched is not None:
            return self._never()
        if not candidates:
            return candidates
        read = torch.zeros(len(self._blocks), dtype=torch.uint8)
        read[sorted(self._seen)] = 1
        if self.agree is not None:
            read = self.agree(read)
        if self.watched is None and not bool(read.any()):
            return frozenset()
        return frozenset(index for index in candidates if not read[index])

    def settle(self, missed: Iterable[int]) -> None:
        """Takes note of what the first step has missed: from now on this is watched.

        Args:
            missed: What `missed` gave.
        """
        if self.watched is not None:
            return
        self._first = frozenset(missed)
        alike = {_pattern(self._blocks[index]) for index in self._first}
        self.watched = frozenset(
            index
            for index, block in enumerate(self._blocks)
            if _pattern(block) in alike or any(EXPERT.search(o.module_name) for o in block.owners)
        )

    def _never(self) -> frozenset[int]:
        """The blocks that the first step has not read, nor others that are named alike."""
        read = {_pattern(b) for i, b in enumerate(self._blocks) if i not in self._first}
        return frozenset(i for i in self._first if _pattern(self._blocks[i]) not in read)

    def state(self) -> list[int] | None:
        """Returns what the first step has missed, which says what later ones watch."""
        return None if self.watched is None else sorted(self._first)

    def load(self, state: list[int] | None) -> None:
        """Takes what `state` gave."""
        self.watched = None
        if state is not None:
            self.settle(state)

    def watching(self, look: bool = False) -> AbstractContextManager[None]:
        """Returns a context that watches the forward passes inside, those of one probe.

        It is made while the modules hold their own weights, and entered when they hold
        what the forward passes are to see.

        Args:
            look: Whether all is to be watched in any case, also outside of a step.
        """
        self.latest, self.outside = set(), set()
        if look or (self._counting and self.watched is None):
            touches = Touches(self._blocks, self._touch)
            return self._watched(range(len(self._blocks)), touches)
        if self._counting and self.watched and not self.compiled:
            return self._watched(self.watched, None)
        return nullcontext()

    @contextmanager
    def _watched(self, numbers: Iterable[int], touches: Touches | None) -> Iterator[None]:
        try:
            with ExitStack() as stack:
                stack.enter_context(self._fetched(numbers))
                if touches is not None:
                    # Compiled code neither asks for weights nor shows its operations.
                    stack.enter_context(_uncompiled())
                    stack.enter_context(self._touched(touches))
                yield
        finally:
            self._seen |= self.latest

    def note(self, numbers: Iterable[int]) -> None:
        """Takes note of blocks that are known to have been read by the latest probe."""
        if self._counting:
            self.latest.update(numbers)
            self._seen |= self.latest

    @contextmanager
    def own(self, numbers: frozenset[int]) -> Iterator[None]:
        """Says that a module's own forward runs inside, which may read these blocks."""
        self.compiled = self.compiled or _in_compiled()
        self._own.append(numbers)
        self.latest |= numbers
        try:
            yield
        finally:
            self._own.pop()

    @contextmanager
    def _fetched(self, numbers: Iterable[int]) -> Iterator[None]:
        """Notes which of some blocks are asked for by name."""
        places: dict[nn.Module, dict[str, set[int]]] = {}
        hooks = []
        for number in numbers:
            for owner in self._blocks[number].owners:
                if isinstance(owner.module, ScaleHolder):
                    hook = _noting(self.latest, number)
                    hooks.append(owner.module.layer.register_forward_pre_hook(hook))
                else:
                    leaves = places.setdefault(owner.module, {})
                    leaves.setdefault(owner.leaf, set()).add(number)
        swapped: list[tuple[nn.Module, dict[str, Any]]] = []
        try:
            for module, leaves in places.items():
                swapped.append((module, module._parameters))
                module.__dict__["_parameters"] = Fetches(module._parameters, leaves, self.latest)
            yield
        finally:
            for module, plain in swapped:
                plain.clear()
                plain.update(module._parameters)
                module.__dict__["_parameters"] = plain
            for handle in hooks:
                handle.remove()

    @contextmanager
    def _touched(self, touches: Touches) -> Iterator[None]:
        """Notes which blocks' memory operations are given."""
        self.touching = True
        try:
            with touches:
                yield
        finally:
            self.touching = False

    def _touch(self, numbers: frozenset[int], used: bool) -> None:
        self.compiled = self.compiled or _in_compiled()
        self.latest |= numbers
        if used and not any(numbers <= own for own in self._own):
            self.outside |= numbers


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


def unread_line(blocks: Sequence[Block], unread: Iterable[int]) -> str:
    """Returns one line on blocks that are left alone, and where they are.

    Args:
        blocks: All blocks, [N].
        unread: Indices of those that the first step has not read.
    """
    missed = set(unread)
    read = {part for i, block in enumerate(blocks) if i not in missed for part in _parts(block)}
    places = Counter(_place(blocks[index], read) for index in sorted(missed))
    elements = sum(blocks[index].numel for index in missed)
    shown = ", ".join(f"{count} in {place}" for place, count in places.most_common(SHOWN))
    more = f" and {len(places) - SHOWN} other places" if len(places) > SHOWN else ""
    return (
        f"{len(missed)} of {len(blocks)} blocks ({elements:,} elements) are read by no forward "
        f"pass and left alone: {shown}{more}"
    )


def _parts(block: Block) -> list[str]:
    """The names of all modules around a block in the bare model, the outermost first."""
    names = block.key.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]


def _place(block: Block, read: set[str]) -> str:
    """The outermost module around a block in which nothing is read; numbers as ``*``."""
    outermost = next((part for part in _parts(block) if part not in read), block.key)
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", outermost)


def _noting(seen: set[int], number: int) -> Callable[..., None]:
    return lambda *_: seen.add(number)


def _in_compiled() -> bool:
    """Whether a function that ``torch.compile`` has made is being run; also uncompiled."""
    frame = sys._getframe() if "torch._dynamo" in sys.modules else None
    while frame is not None:
        code = frame.f_code
        if code.co_name == "compile_wrapper" and "_dynamo" in code.co_filename:
            return True
        frame = frame.f_back
    return False


def _uncompiled() -> AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _pattern(block: Block) -> str:
    return re.sub(r"\d+", "*", block.name)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
