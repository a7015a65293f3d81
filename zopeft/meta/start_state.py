"""The weights that a meta-training trajectory starts from, kept on disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from zopeft.blocks import Blocks


class StartState:
    """A copy of the trained weights in a temporary file, read back tensor by tensor.

    Nothing stays in memory, on whatever device the model is.

    Args:
        blocks: The blocks whose parameters are kept.
        folder: Where the temporary file goes; by default the system's temporary folder.
    """

    def __init__(self, blocks: Blocks, folder: Path | None = None) -> None:
        from safetensors.torch import save_file

        self._parameters = dict(_unique(blocks))
        self._folder = tempfile.TemporaryDirectory(prefix="zopeft-start-", dir=folder)
        self._file = Path(self._folder.name) / "start.safetensors"
        with torch.no_grad():
            tensors = {n: p.detach().contiguous() for n, p in self._parameters.items()}
            # Views of one flat buffer share storage, which the format refuses: save those alone.
            shared = len({t.untyped_storage().data_ptr() for t in tensors.values()}) < len(tensors)
            save_file({n: t.clone() if shared else t for n, t in tensors.items()}, self._file)

    def restore(self) -> None:
        """Writes the kept weights back into the model, bit for bit."""
        from safetensors import safe_open

        with safe_open(self._file, framework="pt") as tensors, torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.data.copy_(tensors.get_tensor(name))

    def close(self) -> None:
        """Deletes the file."""
        self._folder.cleanup()


def _unique(blocks: Blocks) -> list[tuple[str, Tensor]]:
    seen: dict[int, tuple[str, Tensor]] = {}
    for block in blocks:
        seen.setdefault(id(block.parameter), (block.parameter_name, block.parameter))
    return list(seen.values())
