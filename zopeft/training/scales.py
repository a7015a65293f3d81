"""Runs that tune the scales of a quantised model, which the Trainer knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from zopeft.blocks import Blocks
from zopeft.errors import input_error


def is_scales(blocks: Blocks | None) -> bool:
    """Tells whether it is scales that are trained."""
    return blocks is not None and blocks.space == "scales"


@contextmanager
def admitted(model: Any, blocks: Blocks | None) -> Iterator[None]:
    """Has the Trainer take a quantised model without an adapter, where its scales are trained.

    It refuses one when it is made, since no gradient could reach such weights.

    Args:
        model: The model.
        blocks: What is trained.
    """
    if not is_scales(blocks) or not getattr(model, "is_quantized", False):
        yield
        return
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = True


def load_scales(blocks: Blocks, folder: str | Path) -> None:
    """Gives the blocks the scales in a saved model's folder, bit for bit.

    Args:
        blocks: The blocks, [N].
        folder: A folder of safetensors files.

    Raises:
        InputError: The scales of a block are not there, or in another shape.
    """
    from safetensors import safe_open

    wanted = {block.name: block for block in blocks}
    with torch.no_grad():
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(str(file), "pt") as tensors:
                for name in wanted.keys() & set(tensors.keys()):
                    saved, block = tensors.get_tensor(name), wanted[name]
                    if tuple(saved.shape) == block.shape:
                        block.data.copy_(saved)
                        del wanted[name]
    if wanted:
        raise input_error(
            str(folder),
            "the scales of some layers are not in this checkpoint",
            ", ".join(sorted(wanted)[:3]),
            "resume from the journal, or start anew",
        )
