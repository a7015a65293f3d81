"""Models that several processes hold together: each loads its own part of every tensor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zopeft.blocks.shards import how_sharded
from zopeft.errors import input_error

if TYPE_CHECKING:
    from zopeft.models.source import ModelSource

WAYS = ("none", "tensor", "fsdp")
WHERE = "model.sharded"


def check_sharded(sharded: str, source: ModelSource, quantised: bool, device: Any) -> None:
    """Refuses what cannot go with a model that processes share out.

    Args:
        sharded: One of `WAYS`.
        source: The model's source.
        quantised: Whether its layers are to be quantised.
        device: Where it is to be; None chooses.

    Raises:
        InputError: There is one process, or it cannot go together.
    """
    if sharded not in WAYS:
        raise input_error(WHERE, "unknown way", sharded, f"use one of {WAYS}")
    if sharded == "none":
        return
    if processes() < 2:
        do = "start with torchrun --nproc-per-node N, or leave it out"
        raise input_error(WHERE, "needs several processes, and this is the only one", sharded, do)
    for wrong, what, do in (
        (quantised, "cannot go with quantised layers", "leave --load-in-8bit and -4bit out"),
        (source.gguf, "cannot go with a GGUF file", "give a folder of safetensors"),
        (str(device) == "auto", "cannot go with model.device=auto", "leave one of them out"),
    ):
        if wrong:
            raise input_error(WHERE, what, sharded, do)


def processes() -> int:
    """Returns how many processes were started together, as torchrun and others tell it."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def sharding_options(sharded: str) -> dict[str, Any]:
    """Returns transformers' options for a model of which each process loads its part."""
    from transformers.distributed.configuration_utils import DistributedConfig

    if sharded == "tensor":
        config = DistributedConfig(tp_plan="auto", tp_size=processes())
    else:
        config = DistributedConfig(fsdp_size=processes())
    return {"distributed_config": config}


def check_loaded(model: Any, sharded: str, name: str) -> None:
    """Refuses a model that transformers has not shared out, for which it has no plan.

    Raises:
        InputError: Each process holds all of it.
    """
    if sharded != "none" and not how_sharded(model):
        do = "use model.sharded=fsdp" if sharded == "tensor" else "leave it out"
        what = f"{type(model).__name__} has no plan by which transformers shares it out"
        raise input_error(WHERE, what, f"{sharded} ({name})", do)
