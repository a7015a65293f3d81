"""The scales of quantised layers as blocks: one tensor a layer, found where it is live.

A quantised weight is ``scale * code``. The codes cannot be nudged; the scales can, and
moving them moves the weights with no float copy of any. No package for quantised layers is
imported here: their layers are told by the attributes that they show.

bitsandbytes (8 bit, NF4, FP4) is tested with its own layers. torchao, HQQ, AWQ (autoawq) and
GPTQ (gptqmodel) are tested with their own layers where they are installed, and everywhere on
stand-ins that have the same attributes.

References:
    Fine-tuning Quantized Neural Networks with Zeroth-order Optimization (QZO, Zhou et al.
    2025), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks.bare import named_modules
from zopeft.blocks.block import Block, Owner
from zopeft.blocks.packing import PERMIT, is_packed
from zopeft.blocks.survey import Survey
from zopeft.errors import input_error, run_error

ROLE = "scales"
_WEIGHT_MARKS = ("SCB", "quant_state", "qdata", "tensor_impl", "quantized_data", "scale")
"""What the weights of bitsandbytes and torchao have and a plain parameter has not."""


@dataclass(frozen=True)
class Scales:
    """The live scale tensor of a layer.

    Attributes:
        leaf: Its name below the layer's, as in the layer's state dict.
        tensor: The tensor that the layer's forward reads.
    """

    leaf: str
    tensor: Tensor


class ScaleHolder(nn.Module):
    """Holds a layer's scales as a parameter of the same memory.

    A layer keeps them in an attribute, out of reach of ``named_parameters``. The holder is
    no part of the model; what is written to its parameter is what the layer's forward reads.

    Args:
        name: Name of the scales, for messages.
        layer: The quantised layer.
        scales: Its scales.
    """

    def __init__(self, name: str, layer: nn.Module, scales: Scales) -> None:
        super().__init__()
        self.name = name
        self._find: Callable[[], Scales | None] = lambda: scales_of(layer)
        self._layer = lambda: layer
        self.scales = nn.Parameter(scales.tensor.detach(), requires_grad=False)

    @property
    def layer(self) -> nn.Module:
        """The layer, which is no child of its holder."""
        return self._layer()

    def check(self) -> None:
        """Checks that the layer still reads this memory.

        Raises:
            RunError: The layer's scales are elsewhere now.
        """
        found = self._find()
        if found is None or found.tensor.data_ptr() != self.scales.data_ptr():
            raise run_error(
                self.name,
                "the scales have moved since they were discovered",
                do="call zopeft.discover again after moving or converting the model",
            )


def scale_blocks(survey: Survey, salts: dict[str, int]) -> list[Block]:
    """Returns one block for each quantised layer of the model.

    4-bit layers of bitsandbytes are kept from packing their weights for the CPU at the first
    forward, which would round the scales to 16 bit in another order and cannot be undone.

    Args:
        survey: The survey of the model.
        salts: Salts of the parameters' names; those of the scales are set beside them.

    Raises:
        InputError: No layer is quantised, or the scales of some are themselves quantised,
            packed, or shown by no attribute.
    """
    blocks = []
    for name, layer in named_modules(survey.model):
        found = scales_of(layer, name)
        if found is None:
            continue
        key = f"{name}.weight"
        block_name = f"{name}.{found.leaf}"
        role = survey.role_of(key, layer)
        index = survey.layer_of(key)
        blocks.append(
            Block(
                name=block_name,
                role=ROLE,
                layer=index,
                depth=None if index is None else index / max(1, survey.num_layers - 1),
                kind="vector" if found.tensor.ndim == 1 else "tensor",
                shape=tuple(found.tensor.shape),
                owners=(Owner(name, ScaleHolder(block_name, layer, found), "scales"),),
                parameter_name=block_name,
                key=key,
                base_role=role,
                salt=salts.get(block_name, 0),
            )
        )
    if not blocks:
        raise input_error(
            "space",
            "the model has no quantised layer whose scales are known",
            ROLE,
            "load it with --load-in-8bit or --load-in-4bit",
        )
    return blocks


def scale_names(model: nn.Module) -> Iterator[str]:
    """Yields the names of the scales of all quantised layers."""
    for name, layer in named_modules(model):
        found = scales_of(layer, name)
        if found is not None:
            yield f"{name}.{found.leaf}"


def quantised_layers(model: nn.Module) -> Iterator[str]:
    """Yields the names of all layers whose weights are quantised, known scales or not."""
    for name, layer in named_modules(model):
        weight = getattr(layer, "_parameters", {}).get("weight")
        packed = any(hasattr(layer, mark) for mark in ("qweight", "W_q"))
        if packed or any(hasattr(weight, mark) for mark in _WEIGHT_MARKS):
            yield name


def scales_of(layer: nn.Module, name: str = "") -> Scales | None:
    """Returns a layer's live scales, None if it is not quantised.

    Args:
        layer: Any module.
        name: Its name, for messages.

    Raises:
        InputError: It is quantised, but its scales cannot be tuned.
    """
    for kind in (_eight_bit, _four_bit, _packed_ints, _half_quadratic, _tensor_subclass):
        found = kind(layer, name)
        if found is not None:
            return found
    return None


def _eight_bit(layer: Any, name: str) -> Scales | None:
    """bitsandbytes: ``weight.SCB`` before the first forward, ``state.SCB`` after it."""
    state, weight = getattr(layer, "state", None), getattr(layer, "weight", None)
    if state is None or weight is None or not hasattr(state, "SCB"):
        return None
    found = state.SCB if state.SCB is not None else getattr(weight, "SCB", None)
    return None if found is None else Scales("SCB", found)


def _four_bit(layer: Any, name: str) -> Scales | None:
    """bitsandbytes: one fp32 number per 64 weights in ``weight.quant_state.absmax``."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if not isinstance(getattr(state, "absmax", None), Tensor):
        return None
    if getattr(state, "nested", False):
        raise input_error(
            name,
            "its scales are quantised themselves",
            "double quantisation",
            "load with bnb_4bit_use_double_quant=False",
        )
    if is_packed(layer):
        raise input_error(
            name,
            "its scales were rounded and packed by a forward pass on the CPU",
            do="load the model anew and discover its scales before the first forward",
        )
    if hasattr(layer, PERMIT):
        setattr(layer, PERMIT, False)
    assert state is not None
    return Scales("weight.absmax", state.absmax)


def _packed_ints(layer: Any, name: str) -> Scales | None:
    """GPTQ and AWQ: ``scales`` [groups, O] beside ``qweight`` and ``qzeros``."""
    packed = hasattr(layer, "qweight") and hasattr(layer, "qzeros")
    return _floats("scales", getattr(layer, "scales", None)) if packed else None


def _half_quadratic(layer: Any, name: str) -> Scales | None:
    """HQQ: ``meta["scale"]`` beside ``W_q``."""
    meta = getattr(layer, "meta", None)
    if not hasattr(layer, "W_q") or not isinstance(meta, dict):
        return None
    return _floats("meta.scale", meta.get("scale"))


def _tensor_subclass(layer: Any, name: str) -> Scales | None:
    """torchao: a weight that is a tensor of its own kind, with ``scale`` or ``tensor_impl``."""
    weight = getattr(layer, "_parameters", {}).get("weight")
    if weight is None or type(weight) in (Tensor, nn.Parameter):
        return None
    inner = getattr(weight, "tensor_impl", weight)
    return _floats("weight.scale", getattr(inner, "scale", None))


def _floats(leaf: str, found: Any) -> Scales | None:
    known = (torch.float32, torch.bfloat16, torch.float16)
    is_float = isinstance(found, Tensor) and found.dtype in known
    return Scales(leaf, found) if is_float else None
