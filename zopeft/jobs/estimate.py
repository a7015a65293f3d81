"""The job of ``zopeft estimate``: a recipe's model, and the memory to use it."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import Any

from zopeft.recipe.schema import FULL, Recipe

GB = 1e9


def estimate(recipe: Recipe, memory: float | None = None) -> dict[str, Any]:
    """Returns what each way to use a recipe's model needs, and whether it fits.

    Args:
        recipe: The recipe: model, dtype, adapter, method, batch size and length of its tuning.
        memory: Memory to fit in, in GB of 10^9 bytes; None takes that of the GPU found.

    Returns:
        ``model dtype bits batch_size length device memory_bytes context_bytes`` and ``needs``,
        a dict for each `zopeft.jobs.memory.Need` with ``total`` and ``fits`` (None where
        there is no GPU and no `memory`); ``finetuner``, the bytes on disk and in memory of
        a fine-tuner learned on the model, for each capacity.

    Raises:
        InputError: The model's configuration cannot be had, the adapter does not fit it, or
            the method is no zeroth-order one.
    """
    import torch

    from zopeft.jobs.build import model_label
    from zopeft.jobs.memory import CONTEXT
    from zopeft.jobs.memory import estimate as needs_of
    from zopeft.models import resolve
    from zopeft.models.skeleton import bits_of, load_config
    from zopeft.noise import NOISES

    section = recipe.model
    source = resolve(section.name)
    config = load_config(source)
    kept = config.dtype or torch.float32
    dtype = kept if section.dtype == "auto" else getattr(torch, section.dtype)
    bits = 8 if section.load_in_8bit else 4 if section.load_in_4bit else bits_of(config)
    size = (recipe.training.batch_size, recipe.task.max_length)
    adapter = "lora" if recipe.peft.name in (None, FULL) else str(recipe.peft.name)
    rank = recipe.method.rank if NOISES[recipe.method.noise].low_rank else 0
    stacked, twinned = _stacked_tokens(recipe)
    method = recipe.method.name, recipe.method.options
    way = (*size, dtype, bits, rank, stacked, *method)
    needs = needs_of(source, adapter, recipe.peft.options, *way, twinned_tokens=twinned)
    device, room = (None, memory * GB) if memory is not None else _gpu()
    return {
        "model": model_label(source),
        "dtype": str(dtype).removeprefix("torch."),
        "bits": bits,
        "batch_size": size[0],
        "length": size[1],
        "device": device,
        "memory_bytes": room,
        "context_bytes": CONTEXT,
        "needs": [
            {
                **asdict(need),
                "total": need.total,
                "fits": None if room is None else need.total + CONTEXT <= room,
            }
            for need in needs
        ],
        "finetuner": finetuner_sizes(recipe),
    }


def finetuner_sizes(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Returns what a fine-tuner of a recipe's model takes, without learning one.

    Args:
        recipe: Its model, and ranks, widths and gradients of its ``meta`` section.

    Returns:
        ``file_bytes`` and ``memory_bytes`` for each capacity.
    """
    from zopeft.blocks import discover
    from zopeft.finetuner import FineTunerConfig
    from zopeft.finetuner.config import CAPACITIES
    from zopeft.finetuner.matching import groups_of
    from zopeft.finetuner.size import file_bytes, memory_bytes
    from zopeft.meta.leading import matrices
    from zopeft.models import resolve
    from zopeft.models.skeleton import load_config, outline

    meta = recipe.meta
    source = resolve(recipe.model.name)
    blocks = discover(outline(load_config(source), source.label), "full")
    groups = groups_of(blocks, "block")
    forward = meta.gradients == "forward"
    for index in matrices(blocks, embeddings=meta.rows == "none" and not forward):
        rows, columns = blocks[index].shape
        groups[index] = replace(groups[index], shape=(rows, columns))
    rank, sides = (meta.input_rank, "inputs") if forward else (meta.rank, "both")
    found = {}
    for capacity in CAPACITIES:
        config = FineTunerConfig(
            groups, hidden=meta.hidden, capacity=capacity, rank=rank, sides=sides
        )
        found[capacity] = {
            "file_bytes": file_bytes(config),
            "memory_bytes": memory_bytes(config),
        }
    return found


def _stacked_tokens(recipe: Recipe) -> tuple[int, int]:
    """Returns the tokens of a batch up to which a recipe's probes are stacked, here.

    The second number is for full weights that have a twin for each probe.
    """
    import torch

    from zopeft.probing.probing import MOST_TOKENS

    gpu = torch.cuda.is_available()
    if recipe.method.probes == "auto":
        return (MOST_TOKENS["cuda"], 0) if gpu else (MOST_TOKENS["cpu"], MOST_TOKENS["cpu"])
    most = sys.maxsize if recipe.method.probes == "stacked" else 0
    return most, 0 if gpu else most


def _gpu() -> tuple[str | None, float | None]:
    """Returns the first GPU's name and its bytes, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    found = torch.cuda.get_device_properties(0)
    return str(found.name), float(found.total_memory)
