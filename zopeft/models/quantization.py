"""Quantisation: 8- and 4-bit weights through bitsandbytes, on GPU and CPU."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from zopeft.blocks.packing import keep_unpacked as keep_unpacked
from zopeft.errors import input_error
from zopeft.models.quiet import hush

if TYPE_CHECKING:
    import torch


def quantization_config(
    load_in_8bit: bool,
    load_in_4bit: bool,
    compute_dtype: torch.dtype,
    quant_type: Literal["nf4", "fp4"] = "nf4",
    double_quant: bool = False,
) -> Any | None:
    """Returns the ``BitsAndBytesConfig`` for the two flags, or None without one.

    4-bit is without double quantisation unless asked for, so that every block of 64 weights
    keeps a float scale of its own that can be tuned.

    Args:
        load_in_8bit: One int8 per weight, one float scale per output row.
        load_in_4bit: 4 bits per weight, one float scale per 64 weights.
        compute_dtype: Dtype of the matrix products.
        quant_type: The 16 values of a 4-bit weight: "nf4", quantiles of a normal
            distribution, or "fp4", a float with 2 exponent bits.
        double_quant: Quantise the 4-bit weights' scales to 8 bit, too.

    Raises:
        InputError: Both flags, or bitsandbytes is not installed.
    """
    if load_in_8bit and load_in_4bit:
        raise input_error("--load-in-8bit", "given together with --load-in-4bit", do="keep one")
    if not (load_in_8bit or load_in_4bit):
        return None
    flag = "--load-in-8bit" if load_in_8bit else "--load-in-4bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise input_error(
            flag, "needs bitsandbytes, which is not installed", do="run `pip install bitsandbytes`"
        )
    from transformers import BitsAndBytesConfig

    # Its 8-bit product logs a cast at every layer of every forward.
    hush("bitsandbytes")
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
    )
