"""Adapters of tensor-parallel models that start from the numbers they have on a whole model.

PEFT makes them with the sizes of each process's part, from as many random numbers as that takes. So
the same adapter is made once more on a model of the same sizes without weights, and each process
takes its part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from zopeft.blocks.peft import base_of
from zopeft.blocks.shards import how_sharded, put
from zopeft.errors import input_error
from zopeft.models.skeleton import outline


def check_fits(tuned: Any, name: str) -> None:
    """Refuses an adapter that PEFT does not cut as the model's layers are cut.

    Args:
        tuned: The model with its adapter.
        name: The adapter's type.

    Raises:
        InputError: It is no plain LoRA.
    """
    for config in tuned.peft_config.values():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        plain = getattr(config, "init_lora_weights", None) in (True, "gaussian")
        odd = getattr(config, "use_dora", False) or getattr(config, "modules_to_save", None)
        if kind != "LORA" or not plain or odd:
            what = "tensor parallelism goes with plain LoRA alone"
            do = "use lora, --full or model.sharded=fsdp"
            raise input_error(f"peft {name}", what, None, do)


def start_whole(
    tuned: Any, name: str, build: Callable[..., Any], options: Mapping[str, Any], seed: int
) -> None:
    """Gives an adapter the numbers that it would start from on a whole model.

    Args:
        tuned: The model with its adapter; one that is not tensor-parallel is left alone.
        name: The adapter's type.
        build: Puts an adapter of that type on a model.
        options: What it is made with.
        seed: Seed of its start.

    Raises:
        InputError: It is no plain LoRA.
    """
    base = base_of(tuned)
    if how_sharded(base) != "tensor":
        return
    check_fits(tuned, name)
    config: Any = copy.deepcopy(base.config)
    config.__dict__.pop("distributed_config", None)
    model = outline(config, config._name_or_path, next(base.parameters()).dtype)
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                # One number in memory, seen as all of a tensor.
                seen = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)
                module._parameters[leaf] = nn.Parameter(seen, requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = dict(build(model, **dict(options)).named_parameters())
    with torch.no_grad():
        for parameter_name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                put(parameter, found[parameter_name].to(parameter.dtype))
