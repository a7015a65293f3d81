"""Writing: what a plan returned is done to the weights and to the method's state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.vector import Sum, Vector
from zopeft.optim.record import StepRecord
from zopeft.optim.state import State
from zopeft.optim.writes import Change, Descent, Map, Write


def write_step(
    engine: Engine,
    state: State,
    writes: Sequence[Write],
    record: StepRecord,
    weight_decays: Sequence[float],
) -> None:
    """Does the writes of a step, at the learning rate and seed of its record.

    Args:
        engine: The engine over the blocks.
        state: The method's state.
        writes: What the plan returned.
        record: The step's record.
        weight_decays: Weight decay of each block, [N].
    """
    lr = torch.tensor(record.lr, dtype=torch.float64).expand(len(weight_decays))
    decays = 1.0 - lr * torch.tensor(weight_decays, dtype=torch.float64)
    # The loss does not depend on what was not read, so this would be noise.
    decays[record.left_alone] = 1.0
    write_all(engine, state, writes, record.seed, lr, decays, record.left_alone)


def write_all(
    engine: Engine,
    state: State,
    writes: Sequence[Write],
    seed: int,
    lr: Tensor,
    decays: Tensor,
    alone: Collection[int] = (),
) -> None:
    """Does the writes of a step, in their order.

    Args:
        engine: The engine over the blocks.
        state: The method's state.
        writes: What the plan returned; the first that writes weights decays them.
        seed: 64-bit key of the step.
        lr: Learning rate of each block, float64 [N].
        decays: One minus learning rate times weight decay, float64 [N].
        alone: Indices of blocks that are left as they are.
    """
    for write in writes:
        if isinstance(write, Change):
            for name, value in write.values.items():
                state[name] = value
            continue
        if isinstance(write, Map):
            function = _with_rate(write.function, lr)
            buffers = [state[name] for name in write.state]
            engine.map(function, write.vectors, buffers, seed, decays, alone, _even(lr))
        else:
            _descend(engine, write, seed, lr, decays, alone)
        decays = torch.ones_like(decays)


def _descend(
    engine: Engine,
    write: Descent,
    seed: int,
    lr: Tensor,
    decays: Tensor,
    alone: Collection[int],
) -> None:
    grads = torch.tensor(write.gradients, dtype=torch.float64).unsqueeze(1)
    coefficients = -lr * grads / len(grads)
    coefficients[:, list(alone)] = 0.0
    plain = [vector.plain for vector in write.directions]
    directions = [direction for direction in plain if direction is not None]
    if len(directions) == len(plain):
        engine.update(directions, coefficients, decays)
        return
    pairs = zip(write.gradients, write.directions, strict=True)
    total: Vector = Sum(tuple((g / len(grads), vector) for g, vector in pairs))

    def descended(index: int, weight: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        return (weight.sub_(step, alpha=float(lr[index])),)

    engine.map(descended, [total], [], seed, decays, alone, _even(lr))


def _even(lr: Tensor) -> bool:
    """Whether all blocks have one learning rate."""
    return bool((lr == lr[0]).all())


def _with_rate(function: Callable[..., Any], lr: Tensor) -> Callable[..., Any]:
    def mapped(index: int, *tensors: Tensor) -> Any:
        return function(float(lr[index]), *tensors)

    return mapped
