"""Writing: what a plan returned is done to the weights and to the method's state.

Weights decay in the first write of a step that writes weights: to zero, or to where the run
began, ``theta <- theta - lr wd (theta - theta_0)``, or ``- lr wd sign(theta - theta_0)``.

References:
    "Anchored weight decay", arXiv 2605.30148, 2026: it keeps what evolution strategies drift away
    from, by either form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.direction import Direction
from zopeft.engine.vector import Held, Sum, Vector
from zopeft.optim.record import StepRecord
from zopeft.optim.state import ANCHOR, State
from zopeft.optim.writes import Change, Descent, Map, Write


def write_step(
    engine: Engine,
    state: State,
    writes: Sequence[Write],
    record: StepRecord,
    weight_decays: Sequence[float],
    chosen: frozenset[int] | None = None,
    by_sign: bool = False,
) -> None:
    """Does the writes of a step, at the learning rate and seed of its record.

    Args:
        engine: The engine over the blocks.
        state: The method's state.
        writes: What the plan returned.
        record: The step's record.
        weight_decays: Weight decay of each block, [N].
        chosen: Indices of the blocks that the step is about; None for all.
        by_sign: Whether decay to the run's start goes by the sign of the distance.
    """
    lr = torch.tensor(record.lr, dtype=torch.float64).expand(len(weight_decays))
    decays = 1.0 - lr * torch.tensor(weight_decays, dtype=torch.float64)
    anchor = state[ANCHOR] if ANCHOR in state.declared else None
    # The loss does not depend on what was not read, so this would be noise.
    alone = set(record.left_alone)
    if chosen is not None:
        alone |= set(range(len(weight_decays))) - chosen
    decays[list(alone)] = 1.0
    drawn = None if anchor is None else Drawn(Held(anchor), 1.0 - decays, by_sign)
    decays = decays if drawn is None else torch.ones_like(decays)
    write_all(engine, state, writes, record.seed, lr, decays, alone, chosen, drawn)


def write_all(
    engine: Engine,
    state: State,
    writes: Sequence[Write],
    seed: int,
    lr: Tensor,
    decays: Tensor,
    alone: Collection[int] = (),
    chosen: frozenset[int] | None = None,
    drawn: Drawn | None = None,
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
        chosen: Indices of the blocks whose state changes; None for all.
        drawn: What the first write of weights draws them to beside; None for nothing.
    """
    for write in writes:
        if isinstance(write, Change):
            for name, value in write.values.items():
                state.change(name, value, chosen)
            continue
        plain = [vector.plain for vector in write.directions] if isinstance(write, Descent) else []
        directions = [direction for direction in plain if direction is not None]
        if isinstance(write, Descent) and len(directions) == len(plain) and drawn is None:
            _update(engine, write, directions, lr, decays, alone)
        else:
            function, vectors, names = _mapped(write, lr)
            even = _even(lr)
            if drawn is not None:
                function, vectors = drawn.first(function), (drawn.anchor, *vectors)
                even = even and _even(drawn.rates)
            buffers = [state[name] for name in names]
            engine.map(function, vectors, buffers, seed, decays, alone, even)
        decays, drawn = torch.ones_like(decays), None


def _update(
    engine: Engine,
    write: Descent,
    directions: Sequence[Direction],
    lr: Tensor,
    decays: Tensor,
    alone: Collection[int],
) -> None:
    """Writes along single directions, for which there are kernels."""
    grads = torch.tensor(write.gradients, dtype=torch.float64).unsqueeze(1)
    coefficients = -lr * grads / len(grads)
    coefficients[:, list(alone)] = 0.0
    engine.update(directions, coefficients, decays)


def _mapped(
    write: Descent | Map, lr: Tensor
) -> tuple[Callable[..., tuple[Tensor, ...]], Sequence[Vector], Sequence[str]]:
    """Returns a write as a function of a block's index, its weights, vectors and state."""
    if isinstance(write, Map):
        own = write.function
        return lambda index, *tensors: own(float(lr[index]), *tensors), write.vectors, write.state
    # Where it can, the rate goes into the coefficients, as in the kernels: one rounding less.
    rate = float(lr[0]) if _even(lr) else 1.0
    factor = rate / len(write.gradients)
    pairs = zip(write.gradients, write.directions, strict=True)
    total: Vector = Sum(tuple((-factor * g, vector) for g, vector in pairs))

    def descended(index: int, weight: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        own = float(lr[index])
        return (weight.add_(step) if own == rate else weight.add_(step, alpha=own),)

    return descended, (total,), ()


@dataclass(frozen=True)
class Drawn:
    """What weights are drawn to: where the run began.

    Args:
        anchor: theta_0.
        rates: Learning rate times weight decay of each block, float64 [N].
        by_sign: Whether by the sign of the distance, not by the distance.
    """

    anchor: Vector
    rates: Tensor
    by_sign: bool

    def first(self, function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
        """Returns a function of weights and anchor that draws, and then does another's work."""

        def drawn(index: int, weight: Tensor, anchor: Tensor, *tensors: Tensor) -> Any:
            distance = weight - anchor
            if self.by_sign:
                distance.sign_()
            weight.sub_(distance, alpha=float(self.rates[index]))
            return function(index, weight, *tensors)

        return drawn


def _even(numbers: Tensor) -> bool:
    """Whether all blocks have one number."""
    return bool((numbers == numbers[0]).all())
