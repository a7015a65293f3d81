"""Start weights: where a journal's first step begins.

An adapter starts from random numbers, so its weights are saved beside the journal. Full
weights start from the base model, which is named in the header; a fingerprint tells
whether the model at hand is that one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.blocks.shards import leads, put, whole
from zopeft.errors import input_error
from zopeft.staging import staged

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(blocks: Blocks) -> str:
    """Returns 16 hex digits that differ for different weights of the blocks.

    Hashes, per parameter, the sums (modulo 2**64) of its bit patterns over all elements
    and over every second, third and fifth one: four passes without a copy, on the device
    where the weights are, and the same on every device.
    """
    digest = hashlib.blake2b(digest_size=8)
    with torch.no_grad():
        offload = Offload(blocks.model)
        for block in {id(block.parameter): block for block in blocks}.values():
            flat = whole(offload.value(block)).reshape(-1)
            words = flat.view(_WORDS[flat.element_size()])
            sums = [words[::stride].sum(dtype=torch.int64) for stride in (1, 2, 3, 5)]
            digest.update(repr((flat.numel(), torch.stack(sums).tolist())).encode())
    return digest.hexdigest()


def save_start(blocks: Blocks, path: str | Path) -> None:
    """Writes the blocks' weights to a safetensors file, whole or not at all.

    Where processes hold the blocks together all of them call it, and the first one writes.

    Args:
        blocks: The blocks of an adapter, [N].
        path: The file.
    """
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    offload = Offload(blocks.model)
    named = {b.parameter_name: whole(offload.value(b)).cpu().clone() for b in blocks}
    if not leads(blocks.model):
        return
    with staged(path) as place:
        save_file(named, place)
        with open(place, "rb") as file:
            os.fsync(file.fileno())


def load_start(blocks: Blocks, path: str | Path) -> None:
    """Gives the blocks the weights that `save_start` wrote, bit for bit.

    An optimizer over the blocks takes note at its next step.

    Args:
        blocks: The blocks, [N].
        path: The file.

    Raises:
        InputError: The file is missing, damaged, or of other blocks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        saved = load_file(path)
    except FileNotFoundError as error:
        raise input_error(str(path), "the start weights are missing", None) from error
    except SafetensorError as error:
        raise input_error(str(path), "the start weights are damaged", str(error)) from error
    parameters = {block.parameter_name: block for block in blocks}
    if {n: tuple(t.shape) for n, t in saved.items()} != {
        n: tuple(b.parameter.shape) for n, b in parameters.items()
    }:
        raise input_error(str(path), "the start weights are those of other blocks", None)
    with torch.no_grad():
        offload = Offload(blocks.model)
        for name, block in parameters.items():
            for tensor in offload.writable(block):
                put(tensor, saved[name])
