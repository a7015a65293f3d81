"""The model inside wrappers that change how it runs, and names without theirs.

A wrapper puts a part of its own into the name of everything below it. The noise is
addressed by names, so these must be the model's own: a compiled model then draws what it
would draw uncompiled.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod"
"""Where ``torch.compile`` keeps the module that it has wrapped."""


def bare(model: nn.Module) -> nn.Module:
    """Returns the model inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        inner = model._modules.get(COMPILED)
        if inner is None and isinstance(model, DataParallel | DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def bare_name(name: str) -> str:
    """Returns a dotted name without the parts that compiled modules add."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def named_modules(
    model: nn.Module, remove_duplicate: bool = True
) -> Iterator[tuple[str, nn.Module]]:
    """Yields all modules but wrappers, by their names in the bare model.

    Args:
        model: Any module.
        remove_duplicate: False also yields second names of a module.
    """
    for name, module in bare(model).named_modules(remove_duplicate=remove_duplicate):
        if COMPILED not in module._modules:
            yield bare_name(name), module


def is_compiled(model: nn.Module) -> bool:
    """Says whether the model, or a module of it, has been given to ``torch.compile``."""
    return any(
        COMPILED in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
