"""Which carrier holds which block: flat, in its module, or as a scale."""

from __future__ import annotations

import torch

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.engine.carrier import Carrier
from zopeft.engine.elements import Elements
from zopeft.engine.flat import FlatBuffer
from zopeft.engine.modules import ModuleWeights
from zopeft.engine.reads import Reads
from zopeft.engine.scales import ScaleTensors
from zopeft.engine.sharded import ShardedWeights
from zopeft.errors import input_error

SMALL = 1 << 23
"""Elements up to which fp32 full weights are kept flat as an adapter is (32 MB)."""
CARRIERS = ("auto", "flat", "modules")
WHY = "the model is offloaded"
DO = "keep the model on one device, or the carrier on auto"


def check_carrier(name: str) -> None:
    """Checks the name of a carrier.

    Raises:
        InputError: It is unknown.
    """
    if name not in CARRIERS:
        raise input_error("carrier", "unknown carrier", name, f"use one of {CARRIERS}")


def carriers_of(
    blocks: Blocks, name: str, elements: Elements, offload: Offload, reads: Reads
) -> list[Carrier]:
    """Returns the carriers of a model's blocks.

    Args:
        blocks: The blocks, [N].
        name: A name of `CARRIERS`.
        elements: What makes the numbers of vectors.
        offload: The model's offloaded tensors.
        reads: What watches the forward passes.

    Raises:
        InputError: A block's weights are offloaded to where they can't be written, or can't
            be flat.
    """
    if blocks.space == "scales":
        return [ScaleTensors(range(len(blocks)), blocks, elements)]
    flat: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    modular: list[int] = []
    shared: list[int] = []
    small = sum(blocks.numels) <= SMALL
    for index, block in enumerate(blocks):
        parameter = block.parameter
        if block.shard is not None:
            shared.append(index)
            continue
        is_flat = name == "flat" or block.columns is not None
        offload.check(block)
        offloaded = offload.holds(block)
        if is_flat and (offloaded or (offload and blocks.space == "full")):
            raise input_error("carrier", f"{block.name} can't be flat, {WHY}", name, DO)
        if name == "auto" and not offloaded:
            # The hooks know tied weights by where they lie: none may be moved.
            full_and_small = small and parameter.dtype == torch.float32 and not offload
            is_flat = is_flat or blocks.space == "adapter" or full_and_small
        if is_flat:
            flat.setdefault((parameter.device, parameter.dtype), []).append(index)
        else:
            modular.append(index)
    found: list[Carrier] = [
        FlatBuffer(indices, [blocks[i] for i in indices], elements) for indices in flat.values()
    ]
    if modular:
        own = [blocks[i] for i in modular]
        found.append(ModuleWeights(modular, own, elements, offload, reads))
    if shared:
        found.append(ShardedWeights(shared, [blocks[i] for i in shared], elements, blocks.model))
    return found
