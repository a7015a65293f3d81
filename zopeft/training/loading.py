"""How a trainer reads weights back: with their dtypes, scales by name, offloaded ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.training.offloaded import load_offloaded
from zopeft.training.scales import is_scales, load_scales


def load_weights(model: Any, blocks: Blocks, folder: str | Path, load: Callable[[], None]) -> None:
    """Reads a checkpoint's weights as the Trainer does, and what it does not.

    16-bit adapters stay so: PEFT would load them as fp32. Scales are read by name, since a
    loaded 4-bit layer would pass over them. PEFT looks at the weights beside an adapter, which
    are shown to it where they are offloaded.

    Args:
        model: The model that is loaded.
        blocks: What is trained.
        folder: The checkpoint.
        load: The Trainer's own way to load it.
    """
    if is_scales(blocks):
        load_scales(blocks, folder)
        return
    shown = Offload(blocks.model).shown() if blocks.space == "adapter" else nullcontext()
    with _dtypes_kept(model), shown:
        load()
    load_offloaded(blocks, folder)


@contextmanager
def _dtypes_kept(model: nn.Module) -> Iterator[None]:
    """Gives parameters back the dtypes that they had before."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != dtypes.get(name, parameter.dtype):
            parameter.data = parameter.data.to(dtypes[name])
