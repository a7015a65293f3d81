"""4-bit layers that pack their weights anew for a processor: kept from it, and brought back."""

from __future__ import annotations

import logging
from typing import Any

from zopeft.errors import input_error

logger = logging.getLogger(__name__)

PERMIT = "support_avx512bf16_for_cpu"
"""The attribute by which a 4-bit layer of bitsandbytes may pack its weights at a forward."""


def keep_unpacked(model: Any) -> int:
    """Keeps the 4-bit layers of a model as they were loaded, on any processor.

    Where a CPU has AVX-512 for bfloat16, bitsandbytes 0.50 packs 4-bit weights anew at the
    first forward, rounds their scales to 16 bit, and undoes that wrongly whenever a
    ``state_dict`` is taken (the scales stay transposed): every save would damage the model.
    Whatever takes a model from outside calls this first. Layers that a forward has packed
    already are brought back, codes bit for bit; their scales stay rounded.

    Args:
        model: A model, quantised or not.

    Returns:
        Number of layers that had been packed.

    Raises:
        InputError: A layer has been packed in a way that is not known.
    """
    packed = 0
    for name, layer in model.named_modules():
        if PERMIT in vars(layer):
            setattr(layer, PERMIT, False)
            packed += _unpack(name, layer)
    if packed:
        logger.warning(
            "%d 4-bit layers had been packed for this processor by a forward pass, which rounds "
            "their scales to 16 bit; to train over the scales as they were loaded, give the "
            "model to zopeft before its first forward",
            packed,
        )
    return packed


def is_packed(layer: Any) -> bool:
    """Tells whether a forward has packed a layer's weights for the processor."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def _unpack(name: str, layer: Any) -> bool:
    """Undoes the packing of a layer; tells whether there was any."""
    if not is_packed(layer):
        return False
    from bitsandbytes import functional

    inverse = getattr(functional, "_convert_weight_packed_for_cpu_inverse", None)
    if inverse is None:
        raise input_error(
            name,
            "its weights were packed by a forward pass on the CPU",
            do="load the model anew and give it to zopeft before the first forward",
        )
    absmax = layer.weight.quant_state.absmax
    layer.weight.data, state = inverse(layer.weight.data, layer.weight.quant_state)
    if not state.nested:
        # bitsandbytes leaves them [I / blocksize, O], as the packed product reads them.
        state.absmax = absmax.T.float().reshape(-1).contiguous()
    layer.weight.quant_state = state
    return True
