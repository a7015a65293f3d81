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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.blocks.scales import ScaleHolder
from zopeft.engine.touches import Fetches, Touches, in_compiled, uncompiled

EXPERT = re.compile(r"(^|\.)experts\.[^.]*\d")
"""Where modules lie of which a router chooses a few."""


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
                    stack.enter_context(uncompiled())
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
        self.compiled = self.compiled or in_compiled()
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
        self.compiled = self.compiled or in_compiled()
        self.latest |= numbers
        if used and not any(numbers <= own for own in self._own):
            self.outside |= numbers


def _noting(seen: set[int], number: int) -> Callable[..., None]:
    return lambda *_: seen.add(number)


def _pattern(block: Block) -> str:
    return re.sub(r"\d+", "*", block.name)
