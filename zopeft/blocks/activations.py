"""Layers that round what they are given: their loss is a fine staircase, not a slope."""

from __future__ import annotations

from typing import Any

import torch

_LAYER_MARKS = ("activation_scheme", "input_scale_ub")
"""What transformers' own 8-bit float layers have (fine-grained and FBGEMM)."""
_WEIGHT_MARKS = ("act_quant_kwargs", "input_quant_func")
"""What torchao's tensors have whose layers quantise their inputs as well."""


def rounds_inputs(model: Any) -> bool:
    """Tells whether some layer of a model quantises its inputs at every forward.

    8-bit layers of bitsandbytes do, and 8-bit float layers; layers of 4 bit, HQQ, GPTQ and
    AWQ multiply unrounded inputs by weights. No package is imported: layers are told by the
    attributes that they show.

    Args:
        model: A model, quantised or not.
    """
    return any(_rounds(layer) for layer in model.modules())


def in_sixteen_bits(model: Any) -> bool:
    """Tells whether most of a model's float weights are in bfloat16 or float16.

    Args:
        model: A model, with or without an adapter.
    """
    short = other = 0
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            short += parameter.numel()
        elif parameter.is_floating_point():
            other += parameter.numel()
    return short > other


def _rounds(layer: Any) -> bool:
    if hasattr(vars(layer).get("state"), "SCB"):  # bitsandbytes, 8 bit
        return True
    if any(mark in vars(layer) or mark in layer._buffers for mark in _LAYER_MARKS):
        return True
    scheme = vars(layer).get("quantization_scheme")  # compressed-tensors
    if getattr(scheme, "input_activations", None) is not None:
        return True
    weight = layer._parameters.get("weight")
    return any(getattr(weight, mark, None) is not None for mark in _WEIGHT_MARKS)
