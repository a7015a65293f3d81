"""The flip path: a linear layer whose rows each see their own signs of one direction.

``x (W + step u * r_k s_k^T)^T = x W^T + step ((x * s_k) u^T) * r_k`` for the rows x of part k:
one product with W and one with u, whatever the number of parts. Where a part has many rows, a
second product with all of them takes longer than to make each part's own weights out of u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zopeft.engine.elements import as_matrix
from zopeft.engine.flips import Flips
from zopeft.engine.layers import CHUNK, runs_apart
from zopeft.engine.twins import Twins

FEW = 24
"""Rows of a part below which a product with u is the cheaper way."""


def own_flips(
    twins: Twins,
    module: nn.Module,
    inputs: Tensor,
    dim: int,
    flips: Sequence[Flips],
    step: float,
    main: int,
) -> Tensor | None:
    """Returns a layer's output of its perturbed weight, made for one part after the other.

    The weights are those that a probe of the part alone would show; u is made once for all.

    Args:
        twins: What makes the numbers.
        module: The layer.
        inputs: [..., I].
        dim: The dimension along which the K parts lie.
        flips: The parts' patterns of one direction, [K].
        step: Finite-difference step with its sign.
        main: The number of the weight's block.

    Returns:
        [..., O], without what is trained of the bias; None where a product with u is cheaper, or
        the layer is not one of fp32 on a CPU.
    """
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    count = len(flips)
    index = twins.indices[main]
    assert weight is not None
    exact = inputs.dtype == torch.float32 == weight.dtype and inputs.device.type == "cpu"
    below = math.prod(inputs.shape[:dim]) == 1 and inputs.is_contiguous()
    many = inputs.numel() >= FEW * count * inputs.shape[-1]
    alone = not (torch.is_grad_enabled() or runs_apart(inputs) or _turned(module))
    if not (exact and below and many and alone and twins.touches(main)) or index in twins.forms:
        return None
    matrix = weight.detach()
    signs = flips[0].signs.of(index, inputs.device)
    patterns = [flip.number for flip in flips]
    left, right = (side[patterns].contiguous() for side in signs)
    parts = inputs.view(count, -1, inputs.shape[-1])
    outputs = inputs.new_empty(count, parts.shape[1], len(matrix))
    for piece, place in twins.elements.some(index, matrix, slice(0, len(matrix))):
        u = flips[0].base.values(piece)
        shown = twins.kernels.flips(piece.stored, u, left[:, place].contiguous(), right, step)
        for part, own, output in zip(parts, shown, outputs[:, :, place], strict=True):
            torch.mm(part, own.t(), out=output)
    if bias is not None:
        outputs += bias.detach()
    return outputs.view(*inputs.shape[:-1], len(matrix))


def add_flips(
    twins: Twins,
    module: nn.Module,
    output: Tensor,
    inputs: Tensor,
    dim: int,
    flips: Sequence[Flips],
    step: float,
    main: int,
) -> Tensor:
    """Adds to a layer's output what the perturbed weight of each part would add.

    Args:
        twins: What makes the numbers.
        module: A linear layer [O, I], or a Conv1D [I, O].
        output: What its own weights give, [..., O]; may be written.
        inputs: [..., I].
        dim: The dimension along which the K parts lie.
        flips: The parts' patterns of one direction, [K].
        step: Finite-difference step with its sign.
        main: The number of the weight's block.

    Returns:
        [..., O].
    """
    if runs_apart(inputs) or not output.is_contiguous():
        output = output.contiguous().clone()
    if twins.touches(main):
        signs = flips[0].signs.of(twins.indices[main], inputs.device)
        patterns = [flip.number for flip in flips]
        left, right = (side[patterns].to(inputs.dtype) for side in signs)
        into, out = (left, right) if _turned(module) else (right, left)
        flipped = _signed(inputs, into, dim).reshape(-1, inputs.shape[-1])
        added = _product(twins, module, main, flipped, flips[0]).view(output.shape)
        output.add_(_signed(added, out, dim), alpha=step)
    return output


def add_biases(
    twins: Twins, output: Tensor, dim: int, flips: Sequence[Flips], step: float, bias: int | None
) -> Tensor:
    """Adds to a layer's output what the perturbed bias of each part would add.

    Args:
        twins: What makes the numbers.
        output: [..., O]; is written.
        dim: The dimension along which the K parts lie.
        flips: The parts' patterns of one direction, [K].
        step: Finite-difference step with its sign.
        bias: The number of the bias's block; None where none is trained.
    """
    if bias is not None and twins.touches(bias):
        shift = torch.stack([_vector(twins, bias, flip) for flip in flips]).to(output.dtype)
        parts = output.unflatten(dim, (len(flips), -1))
        parts.add_(_spread(shift, parts, dim), alpha=step)
    return output


def _turned(module: nn.Module) -> bool:
    return type(module) is not nn.Linear


def _product(twins: Twins, module: nn.Module, main: int, inputs: Tensor, flip: Flips) -> Tensor:
    """Returns ``x u^T`` (of a Conv1D ``x u``) of rows [n, ...], u made some rows at a time."""
    index, weight = twins.indices[main], as_matrix(twins.blocks[main].data)
    plain, turned = flip.base.plain, _turned(module)
    if plain is not None and index in twins.forms and not twins.forms.noisy(index):
        factors = twins.forms.of(index, plain, inputs.device).factors
        assert factors is not None
        left, right = (each.to(inputs.dtype) for each in factors)
        return inputs @ left @ right if turned else inputs @ right.t() @ left.t()
    rows, width = weight.shape
    most = max(1, CHUNK // width)
    memory = inputs.new_empty(min(most, rows), width)
    outputs = inputs.new_zeros(len(inputs), width if turned else rows)
    for first in range(0, rows, most):
        own = slice(first, min(first + most, rows))
        u = memory[: own.stop - own.start]
        for part, place in twins.elements.some(index, weight, own):
            u[place] = flip.base.values(part)
        if turned:
            outputs += inputs[:, own] @ u
        else:
            outputs[:, own] = inputs @ u.t()
    return outputs


def _vector(twins: Twins, number: int, flip: Flips) -> Tensor:
    """Returns a vector's numbers under one pattern, fp32 [O]."""
    index, weight = twins.indices[number], twins.blocks[number].data
    return torch.cat([flip.values(p) for p in twins.elements.parts(index, weight)], 1).view(-1)


def _signed(tensor: Tensor, pattern: Tensor, dim: int) -> Tensor:
    """Returns a tensor [..., W] whose K parts are multiplied by the rows of [K, W]."""
    parts = tensor.unflatten(dim, (len(pattern), -1))
    return (parts * _spread(pattern, parts, dim)).flatten(dim, dim + 1)


def _spread(rows: Tensor, parts: Tensor, dim: int) -> Tensor:
    """Returns [K, W] as a view that goes with parts [..., K, ..., W]."""
    shape = [1] * parts.dim()
    shape[dim], shape[-1] = rows.shape
    return rows.view(shape)
