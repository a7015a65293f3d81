"""The weights that a meta-training trajectory starts from, kept on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Blocks

CHUNK = 1 << 18
"""Elements that are read and written at a time."""


class StartState:
    """A copy of the trained weights in a temporary file, read back piece by piece.

    Nothing stays in memory, on whatever device the model is.

    Args:
        blocks: The blocks whose parameters are kept.
        folder: Where the temporary file goes; by default the system's temporary folder.
    """

    def __init__(self, blocks: Blocks, folder: Path | None = None) -> None:
        self._parameters = dict(_unique(blocks))
        self._folder = tempfile.TemporaryDirectory(prefix="zopeft-start-", dir=folder)
        self._file = Path(self._folder.name) / "start.bin"
        # Raw bytes, a piece at a time: a library that writes or maps a whole file would hold
        # a second copy of the weights meanwhile.
        with open(self._file, "wb") as file:
            for piece in self._pieces():
                file.write(_bytes(piece.cpu()))

    def restore(self) -> None:
        """Writes the kept weights back into the model, bit for bit."""
        with open(self._file, "rb") as file:
            for piece in self._pieces():
                kept = torch.empty_like(piece, device="cpu")
                file.readinto(_bytes(kept))
                piece.copy_(kept)

    def _pieces(self) -> Iterator[Tensor]:
        for parameter in self._parameters.values():
            yield from parameter.data.view(-1).split(CHUNK)

    def close(self) -> None:
        """Deletes the file."""
        self._folder.cleanup()


def _unique(blocks: Blocks) -> list[tuple[str, Tensor]]:
    seen: dict[int, tuple[str, Tensor]] = {}
    for block in blocks:
        seen.setdefault(id(block.parameter), (block.parameter_name, block.parameter))
    return list(seen.values())


def _bytes(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous CPU tensor, not a copy of it."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
