"""Backward passes whose gradients are used up as they are made.

PyTorch calls a hook as soon as a parameter's gradient is complete; the hook takes what it
needs and drops the gradient, so no more than one block's gradient is alive at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.engine import Engine
from zopeft.kernels import plain

Consumer = Callable[[nn.Parameter, list[int], Tensor], None]

LARGEST = torch.finfo(torch.float32).max / 2
"""How far a weight may move at once: added to any sane weight, it is still finite."""


@contextmanager
def consumed(blocks: Blocks, consumer: Consumer) -> Iterator[None]:
    """Hands each parameter's gradient to `consumer` during the backward pass inside.

    Args:
        blocks: The blocks, [N].
        consumer: Called with the parameter, the indices of its blocks and its gradient.
    """
    members: dict[int, tuple[nn.Parameter, list[int]]] = {}
    for index, block in enumerate(blocks):
        members.setdefault(id(block.parameter), (block.parameter, []))[1].append(index)

    def hook(parameter: Tensor) -> None:
        owner, indices = members[id(parameter)]
        gradient = parameter.grad
        parameter.grad = None
        assert gradient is not None
        with torch.no_grad():
            consumer(owner, indices, gradient)

    parameters: list[Any] = [p for p, _ in members.values()]
    handles = [p.register_post_accumulate_grad_hook(hook) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, _ in members.values():
            parameter.grad = None


class Projections:
    """Collects ``<grad_i, z_i>`` of every block and the gradient's norm.

    Args:
        engine: The engine over the blocks.
        seed: 64-bit key of the step's direction.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.seed = engine, seed
        device = engine.blocks[0].parameter.device
        self.inner = torch.zeros(len(engine.blocks), dtype=torch.float64, device=device)
        self.squared_norm = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes one parameter's gradient."""
        self.squared_norm += gradient.double().square().sum()
        for index in indices:
            block: Block = self.engine.blocks[index]
            self.inner[index] += self.engine.project(block, self.seed, gradient)


class Descent:
    """SGD on the weights, each as soon as its gradient is there.

    ``theta <- theta - lr min(1, clip / norm) v``, ``v <- momentum v + grad``; 16-bit
    weights are rounded stochastically.

    No number that is not finite reaches a weight. A gradient is used up before the next one
    is made, so when one of them turns out not to be finite the parameters before it have
    moved: it and all after it leave their parameters as they are, bit for bit, until the
    next `begin`, v is forgotten, and `spoilt` says so.

    Args:
        blocks: The blocks, [N].
        lr: Learning rate.
        momentum: Above 0, a copy of the weights in fp32 is kept for v.

    Attributes:
        spoilt: Whether a gradient of this pass was not finite, or too large to be used.
    """

    def __init__(self, blocks: Blocks, lr: float, momentum: float = 0.0) -> None:
        self.blocks, self.lr, self.momentum = blocks, lr, momentum
        self.factor, self.seed, self.spoilt = 1.0, 0, False
        self._velocity: dict[int, Tensor] = {}

    def begin(self, factor: float, seed: int) -> None:
        """Sets the clipping factor and the seed of the rounding bits for the next pass."""
        self.factor, self.seed, self.spoilt = factor, seed, False

    def reset(self) -> None:
        """Forgets momentum."""
        self._velocity.clear()

    def __call__(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes one parameter's gradient and moves the parameter."""
        if self.spoilt:
            return
        flat = gradient.reshape(-1).float()
        if not _within(flat, self.lr * self.factor):
            self._spoil()
            return
        if self.factor == 0.0:
            return
        factor = self.factor
        if self.momentum:
            velocity = self._velocity.setdefault(id(parameter), torch.zeros_like(flat))
            flat = velocity.mul_(self.momentum).add_(flat, alpha=factor)
            factor = 1.0
            if not _within(flat, self.lr):
                self._spoil()
                return
        address = self.blocks[indices[0]].address
        plain.update_(parameter.data.view(-1), flat, -self.lr * factor, 1.0, self.seed, address)

    def _spoil(self) -> None:
        self.spoilt = True
        self.reset()


def _within(direction: Tensor, factor: float) -> bool:
    """Whether a direction is finite, and its product with a factor no more than `LARGEST`."""
    largest = float(torch.linalg.vector_norm(direction, math.inf))
    return math.isfinite(largest) and largest * factor <= LARGEST
