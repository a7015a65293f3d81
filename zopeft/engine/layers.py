"""Forward passes of single layers under a probe, each in the memory of a part of its weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.engine.scratch import remade
from zopeft.engine.twins import Twins

CHUNK = 1 << 22
"""Elements of a matrix that are perturbed at a time (16 MB of fp32)."""


def chunk_rows(weight: Tensor) -> int:
    """Returns the rows of a matrix that are perturbed at a time."""
    return max(1, CHUNK // weight.shape[1])


def takes_ids(forward: Callable[..., Any]) -> bool:
    """Whether an embedding's forward takes token ids and nothing else."""
    names = list(inspect.signature(forward).parameters)
    return len(names) == 1 and names[0] in ("input", "input_ids")


def embedding(
    twins: Twins,
    module: nn.Module,
    leaf: str,
    number: int,
    forward: Callable[..., Any],
    ids: Tensor,
) -> Any:
    """Runs an embedding on a small matrix of just the rows that `ids` names.

    Args:
        twins: What makes the rows.
        module: The embedding.
        leaf: The weight's name in it.
        number: The block's number.
        forward: The embedding's own forward.
        ids: Row numbers, [B, T].
    """
    weight = module._parameters[leaf]
    assert weight is not None
    rows, inverse = ids.unique(return_inverse=True)
    shifted = twins.rows(number, weight, rows)
    padding, module.padding_idx = module.padding_idx, None  # type: ignore[assignment]
    module._parameters[leaf] = shifted  # type: ignore[assignment]
    try:
        return forward(inverse)
    finally:
        module._parameters[leaf] = weight
        module.padding_idx = padding


def runs_apart(inputs: Tensor) -> bool:
    """Whether outputs must not be written in place: autograd and autocast do not allow it."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(inputs.device.type)


def wide_pair(
    twins: Twins, module: nn.Module, number: int, parts: Sequence[Tensor]
) -> list[Tensor] | None:
    """Runs a wide linear layer under both probes of a pair; one draw serves both.

    Args:
        twins: What makes the chunks; they show the first probe.
        module: The layer, without a bias that is trained.
        number: The number of its weight's block.
        parts: What each probe gives it, [..., I].

    Returns:
        [..., O] of each; None where outputs must not be written in place.
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    if any(map(runs_apart, parts)):
        return None
    rows = chunk_rows(weight)
    flat = [part.reshape(-1, weight.shape[1]) for part in parts]
    outputs = [part.new_empty((len(part), weight.shape[0])) for part in flat]
    for first in range(0, weight.shape[0], rows):
        own = slice(first, min(first + rows, weight.shape[0]))
        shown = twins.both(number, weight, own)
        for part, output, twin in zip(flat, outputs, shown, strict=True):
            if bias is None:
                torch.mm(part, twin.t(), out=output[:, own])
            else:
                torch.addmm(bias[own], part, twin.t(), out=output[:, own])
    pairs = zip(outputs, parts, strict=True)
    return [output.view(*part.shape[:-1], -1) for output, part in pairs]


def wide_linear(
    twins: Twins, module: nn.Module, number: int, inputs: Tensor, product: bool
) -> Tensor:
    """Runs a wide linear layer in chunks of output rows.

    Args:
        twins: What makes the chunks.
        module: The layer.
        number: The number of its weight's block.
        inputs: [..., I].
        product: Whether a product of factors is part of the chunks.

    Returns:
        [..., O].
    """
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor | None)
    rows = chunk_rows(weight)
    apart = runs_apart(inputs)
    flat = inputs.reshape(-1, weight.shape[1])
    parts: list[Tensor] = []
    outputs = flat.new_empty((0 if apart else len(flat), weight.shape[0]))
    for first in range(0, weight.shape[0], rows):
        own = slice(first, min(first + rows, weight.shape[0]))
        memory = twins.memory_for(weight[own], 0)
        scratch = twins.make(number, weight, own, product=product, memory=memory)
        piece = None if bias is None else bias[own]
        try:
            with remade([scratch]):
                if apart:
                    parts.append(nn.functional.linear(inputs, scratch.weight, piece))
                elif piece is None:
                    torch.mm(flat, scratch.weight.t(), out=outputs[:, own])
                else:
                    torch.addmm(piece, flat, scratch.weight.t(), out=outputs[:, own])
        finally:
            twins.free([scratch])
    return torch.cat(parts, dim=-1) if apart else outputs.view(*inputs.shape[:-1], -1)
