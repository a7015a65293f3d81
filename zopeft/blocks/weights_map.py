"""Maps of offloaded weights, as ``accelerate.utils.offload`` makes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def resolved(weights: Any, key: str) -> tuple[Any, str]:
    """Follows maps that only put a prefix before a name down to the one that has the values."""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):
        weights, key = weights.dataset, weights.prefix + key
    return weights, key


def held(weights: Any) -> dict[str, Tensor]:
    """The tensors of a map that are in memory."""
    found: dict[str, Tensor] = getattr(weights, "state_dict", weights)
    return found


def writable(weights: Any, key: str) -> Tensor:
    """Returns the tensor of a name, in memory or in a private file, to be written in place."""
    found = held(weights)
    if key not in found:
        index: Mapping[str, Any] = weights.index
        # Tied weights have an entry each, of the same place.
        names = [n for n, entry in index.items() if n == key or _same_file(entry, index[key])]
        views = _private_copy(weights[key], weights.save_folder, key, len(names))
        found.update(zip(names, views, strict=True))
    return found[key]


def _same_file(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    where = ("safetensors_file", "weight_name")
    return one.get(where[0]) is not None and all(one.get(k) == other.get(k) for k in where)


def _private_copy(
    value: Tensor, folder: str | os.PathLike[str] | None, key: str, count: int
) -> list[Tensor]:
    """Returns views of a new file without a name that holds the same values.

    Each view is a mapping of its own: savers that refuse tensors of shared memory take them.
    """
    import torch

    assert folder is not None
    os.makedirs(folder, exist_ok=True)
    handle, path = tempfile.mkstemp(prefix=f"{key}.", suffix=".dat", dir=folder)
    try:
        os.truncate(handle, value.numel() * value.element_size())
        views = [
            torch.from_file(path, shared=True, size=value.numel(), dtype=value.dtype)
            for _ in range(count)
        ]
    finally:
        os.close(handle)
        os.unlink(path)
    views[0].copy_(value.detach().reshape(-1))
    return [view.view(value.shape) for view in views]
