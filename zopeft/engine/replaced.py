"""Trained tensors that a layer replaces by copies of its own in the forward: refused."""

from __future__ import annotations

from collections.abc import Sequence

from zopeft.engine.flat import FlatBuffer
from zopeft.errors import input_error


def refuse_replaced(flats: Sequence[FlatBuffer]) -> None:
    """Refuses layers that no longer read what a probe has written, after the first probe.

    bitsandbytes casts the bias of an 8- or 4-bit layer in place, to the dtype that it computes
    in: later probes would not be seen, and the cast copy of a probe be taken for the weights.
    Before it raises, the weights are where they were.

    Args:
        flats: The buffers that the parameters were views of.

    Raises:
        InputError: A parameter is a view no longer.
    """
    for flat in flats:
        step, start = flat.work.element_size(), flat.work.data_ptr()
        for parameter, offset in zip(flat.parameters, flat.offsets, strict=True):
            if parameter.numel() and parameter.data_ptr() != start + step * offset:
                dtype = str(parameter.dtype).removeprefix("torch.")
                names = [block.name for block in flat.blocks if block.parameter is parameter]
                for one in flats:
                    one.bind()
                raise input_error(
                    names[0] if names else "model",
                    f"its layer replaces it by a copy in {dtype} at a forward pass",
                    do=f"cast it to {dtype} before zopeft.discover, or freeze it (bias='none')",
                )
