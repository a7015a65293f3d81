"""Checkpoints of models whose weights are partly offloaded."""

from __future__ import annotations

from pathlib import Path

import torch

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.errors import input_error
from zopeft.reading import fits, read_object


def load_offloaded(blocks: Blocks, folder: str | Path) -> None:
    """Gives the blocks that are offloaded the values in a saved model's folder, bit for bit.

    Loading a state dict passes over parameters on the meta device.

    Args:
        blocks: The blocks, [N]; those in memory are left alone.
        folder: A folder of safetensors files.

    Raises:
        InputError: The values of a block are not there, or in another shape.
    """
    from safetensors import safe_open

    offload = Offload(blocks.model)
    wanted = [block for block in blocks if offload.holds(block)] if offload else []
    files = _files(Path(folder)) if wanted else {}
    for block in wanted:
        names = [f"{owner.module_name}.{owner.leaf}" for owner in block.owners]
        name = next((n for n in names if n in files), None)
        if name is None:
            raise input_error(str(folder), f"the values of {block.name} are not in it")
        with safe_open(str(files[name]), "pt") as tensors:
            saved = tensors.get_tensor(name)
        for tensor in offload.writable(block):
            if tensor.shape != saved.shape:
                raise input_error(str(folder), f"{block.name} has another shape", saved.shape)
            with torch.no_grad():
                tensor.copy_(saved)


def _files(folder: Path) -> dict[str, Path]:
    """Returns which file of a saved model holds each tensor."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not fits(names, "texts"):
            raise input_error(str(index), "its weight_map does not name files")
        return {name: folder / file for name, file in names.items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        return {}
    with safe_open(str(file), "pt") as tensors:
        return dict.fromkeys(tensors.keys(), file)
