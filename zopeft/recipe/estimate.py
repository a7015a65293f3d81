"""The job of ``zopeft estimate``: a recipe's model, and the memory to use it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from zopeft.recipe.schema import FULL, Recipe

GB = 1e9


def estimate(recipe: Recipe, memory: float | None = None) -> dict[str, Any]:
    """Returns what each way to use a recipe's model needs, and whether it fits.

    Args:
        recipe: The recipe: model, dtype, adapter, batch size and length of its tuning.
        memory: Memory to fit in, in GB of 10^9 bytes; None takes that of the GPU found.

    Returns:
        ``model dtype bits batch_size length device memory_bytes context_bytes`` and ``needs``,
        a dict for each `zopeft.models.memory.Need` with ``total`` and ``fits`` (None where
        there is no GPU and no `memory`).

    Raises:
        InputError: The model's configuration cannot be had, or the adapter does not fit it.
    """
    import torch

    from zopeft.models import resolve
    from zopeft.models.memory import CONTEXT
    from zopeft.models.memory import estimate as needs_of
    from zopeft.models.skeleton import bits_of, load_config
    from zopeft.recipe.build import model_label

    section = recipe.model
    source = resolve(section.name)
    config = load_config(source)
    kept = config.dtype or torch.float32
    dtype = kept if section.dtype == "auto" else getattr(torch, section.dtype)
    bits = 8 if section.load_in_8bit else 4 if section.load_in_4bit else bits_of(config)
    size = (recipe.training.batch_size, recipe.task.max_length)
    adapter = "lora" if recipe.peft.name in (None, FULL) else str(recipe.peft.name)
    needs = needs_of(source, adapter, recipe.peft.options, *size, dtype, bits)
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
    }


def _gpu() -> tuple[str | None, float | None]:
    """Returns the first GPU's name and its bytes, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    found = torch.cuda.get_device_properties(0)
    return str(found.name), float(found.total_memory)
