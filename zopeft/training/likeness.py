"""Likeness: whether the processes of a run have the same model, data and versions."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.blocks.shards import how_sharded
from zopeft.errors import input_error
from zopeft.installed import LIBRARIES, installed
from zopeft.journal.start import fingerprint
from zopeft.ranks import Ranks

SOME_ELEMENTS, SOME_EXAMPLES = 4096, 64
"""Of each tensor of the model, and of the data: evenly chosen, to be compared."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_likeness(
    ranks: Ranks,
    model: nn.Module,
    blocks: Blocks,
    data: Any,
    told: Mapping[str, str] | None = None,
) -> None:
    """Refuses a run whose processes are not alike, before its first step.

    Args:
        ranks: The processes.
        model: The model.
        blocks: What is trained.
        data: The training examples; without a length they are not compared.
        told: What else is to be alike, by name.

    Raises:
        InputError: They differ; the first thing that does is named, with rank and values.
    """
    if not ranks.several:
        return
    every = ranks.everyone({**(told or {}), **facts_of(model, blocks, data)})
    for name, wanted in every[0].items():
        for number, facts in enumerate(every):
            if facts.get(name) != wanted:
                raise input_error(
                    "ranks",
                    f"rank {number} has another {name} than rank 0 ({wanted})",
                    facts.get(name),
                    f"give all of them the same {name}",
                )


def facts_of(model: nn.Module, blocks: Blocks, data: Any) -> dict[str, str]:
    """Returns what must be alike, by name, from versions down to what follows from them."""
    facts = {name: installed(name) or "not installed" for name in LIBRARIES}
    floats = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    facts["dtype"] = ", ".join(sorted(floats))
    facts["number of examples"] = str(len(data)) if hasattr(data, "__len__") else "not counted"
    facts["data"] = data_digest(data)
    facts["model"] = model_digest(model, blocks)
    facts["start of the trained weights"] = fingerprint(blocks)
    return facts


def compute_alike(ranks: Ranks, device: torch.device) -> bool:
    """Whether the processes of a run compute on the same kind of hardware, as far as it is known.

    Args:
        ranks: The processes.
        device: Where this one computes.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return len(set(ranks.everyone(name))) == 1


def model_digest(model: nn.Module, blocks: Blocks) -> str:
    """Returns a digest of a model's parameters but the trained ones: of some of their elements."""
    digest = hashlib.blake2b(digest_size=8)
    trained = {id(block.parameter) for block in blocks}
    # Of a model that processes hold together each has other parts.
    held = how_sharded(model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            if id(tensor) not in trained and tensor.device.type != "meta" and not held:
                digest.update(_some(tensor).encode())
    return digest.hexdigest()


def _some(tensor: Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // SOME_ELEMENTS)].contiguous()
    words = some.view(_WORDS[some.element_size()]) if some.element_size() in _WORDS else some
    return str(int(words.sum(dtype=torch.int64)))


def data_digest(data: Any) -> str:
    """Returns a digest of some examples; "" of data that has none by number."""
    if hasattr(data, "stream"):
        # Not read: it may be long.
        return str(data.stream.mark)
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return ""
    digest, count = hashlib.blake2b(digest_size=8), len(data)
    for turn in range(min(SOME_EXAMPLES, count)):
        number = turn * (count - 1) // max(1, min(SOME_EXAMPLES, count) - 1)
        try:
            _add(digest, data[number])
        except Exception:  # A data set of the user's may fail in any way: not here.
            return ""
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Adds a value to a digest: what it holds, not where it lies."""
    if isinstance(value, Tensor):
        _add(digest, value.detach().cpu().tolist())
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(repr(value).encode())
    elif isinstance(value, Sequence):
        for one in value:
            _add(digest, one)
    elif hasattr(value, "__dict__"):
        _add(digest, vars(value))
    else:
        digest.update(type(value).__name__.encode())
