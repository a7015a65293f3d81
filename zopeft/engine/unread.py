"""In words: which blocks no forward pass reads, and where they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from zopeft.blocks import Block

SHOWN = 4
"""Places of unread blocks that a line names."""


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
