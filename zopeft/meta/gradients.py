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
from zopeft.kernels.choice import kernels_for
from zopeft.noise import Noise

Consumer = Callable[[nn.Parameter, list[int], Tensor], None]

CHUNK = 1 << 18
"""Elements of 16-bit weights that are moved at a time, through copies in fp32."""
LARGEST = torch.finfo(torch.float32).max / 2
"""How far a weight may move at once: added to any sane weight, it is still finite."""


@contextmanager
def consumed(blocks: Blocks, consumer: Consumer) -> Iterator[None]:
    """Hands each parameter's gradient to `consumer` during the backward pass inside.

    Args:
        blocks: The blocks, [N].
        consumer: Called with the parameter, the indices of its blocks and its gradient.
    """
    members = owners(blocks)

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


def owners(blocks: Blocks) -> dict[int, tuple[nn.Parameter, list[int]]]:
    """Returns the parameters of the blocks, each with the indices of its blocks, by identity."""
    members: dict[int, tuple[nn.Parameter, list[int]]] = {}
    for index, block in enumerate(blocks):
        members.setdefault(id(block.parameter), (block.parameter, []))[1].append(index)
    return members


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
        self.squared_norm += self.engine.kernels.squares(gradient)
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
        devices = {block.parameter.device for block in blocks}
        self._kernels = kernels_for("auto", Noise(), devices)
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
        flat, factor = gradient.reshape(-1), self.factor
        if not _within(flat, self.lr * factor):
            self._spoil()
            return
        if factor == 0.0:
            return
        if self.momentum:
            velocity = self._velocity.get(id(parameter))
            if velocity is None:
                velocity = torch.zeros_like(flat, dtype=torch.float32)
                self._velocity[id(parameter)] = velocity
            flat, factor = velocity.mul_(self.momentum).add_(flat, alpha=factor), 1.0
            if not _within(flat, self.lr):
                self._spoil()
                return
        address = self.blocks[indices[0]].address
        self._move(parameter.data.view(-1), flat, -self.lr * factor, address)

    def _move(self, weight: Tensor, direction: Tensor, coefficient: float, address: int) -> None:
        """Adds ``coefficient * direction``, rounded stochastically into 16-bit storage."""
        if weight.dtype == torch.float32:
            weight.add_(direction, alpha=coefficient)
            return
        for at in range(0, weight.numel(), CHUNK):
            piece = weight[at : at + CHUNK]
            moved = piece.float().add_(direction[at : at + CHUNK], alpha=coefficient)
            self._kernels.store(self.seed, address, at, moved, piece)

    def _spoil(self) -> None:
        self.spoilt = True
        self.reset()


def _within(direction: Tensor, factor: float) -> bool:
    """Whether a direction is finite, and its product with a factor no more than `LARGEST`."""
    # A norm of order infinity takes ten times as long.
    least, most = torch.stack(torch.aminmax(direction)).tolist()
    largest = max(-least, most)
    return math.isfinite(least) and math.isfinite(most) and largest * factor <= LARGEST
