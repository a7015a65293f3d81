"""AGZO: directions within what the batch's activations span."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine.kept import orthonormal
from zopeft.engine.vector import Vector
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM
from zopeft.optim.declared import Options, option
from zopeft.optim.factors import along, rest
from zopeft.optim.looks import Watched
from zopeft.optim.state import Factor, Kept
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder

Start = Callable[[int, int, torch.device], Tensor]
ITERATIONS = 3
"""Power iterations of a basis on one batch's activations."""


@dataclass(frozen=True)
class AGZOOptions(Options):
    """The options of `AGZO`."""

    r: int = option(1, "directions of a layer's input that are taken", least=1, most=64)
    renew: int = option(1, "steps for which they are kept", least=1)


class AGZO(ZerothOrder):
    """``u = R A^T`` for linear layers, A [I, r] the leading directions of the layer's inputs.

    A is the orthonormal basis that three power iterations make of the inputs H [tokens, I] of
    the step's own forward pass at the weights, R [O, r] is new each step; other weights have
    Gaussian noise. ``g = (L(theta + eps u) - L(theta)) / eps; theta <- theta - lr g u``. Two
    forward passes a step. A linear layer's gradient lies in the span of its inputs, so u holds far
    more of it than isotropic noise does, and of the curvature too.

    A comes from activations, so it is noted in the journal (I r numbers a layer each time that
    it is renewed); then a replay needs no forward pass.

    Published settings: r 1, eps 1e-7 in fp32 and 1e-4 in bf16.

    References:
        "AGZO: Activation-Guided Zeroth-Order Optimization for LLM Fine-Tuning", 2026,
        algorithm 1.
    """

    Options = AGZOOptions
    gradient_units = False
    single = True
    spaces = ("full",)
    shards = False

    def keeps(self) -> Mapping[str, Kept]:
        """See `ZerothOrder.keeps`: A."""
        rank = self.own.r
        return {"basis": Factor(lambda _, columns: (columns, min(rank, columns)))}

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        z, layers = step.direction(), list(filter(step.touches, linear_layers(self.blocks)))
        known = all(bool(step.state["basis"][index].any()) for index in layers)
        renews = step.number % self.own.renew == 0 or not known
        watch = Activations(self.blocks, layers, self._start(step)) if renews else None
        # The basis is known when the weights' own loss is: the probe along it comes after.
        (centre,) = yield [Watched(watch)]
        lefts: dict[int, Tensor] = {}
        rights: dict[int, Tensor] = {}
        bases: dict[int, Tensor] = {}
        for index in layers:
            block, device = self.blocks[index], self.engine.weights(index).device
            bases[index] = step.state["basis"][index]
            if watch is not None:
                seen = functools.partial(Activations.basis, watch, index)
                bases[index] = torch.from_numpy(step.note(f"A{index}", seen).copy()).to(device)
            rights[index] = bases[index].t().contiguous().to(device)
            tensors = [(block.address, block.shape[0] * rights[index].shape[0])]
            (drawn,) = self.engine.kernels.draw(z.seed, LEFT_STREAM, tensors, device)
            lefts[index] = drawn.view(block.shape[0], -1)
        u: Vector = along(lefts, rights) + rest(z, self.blocks, layers)
        (plus,) = yield [u.at(step.eps)]
        slope = step.one_sided(plus, centre)
        return [step.descend(u, slope), step.change(basis=bases)]

    def _start(self, step: Step) -> Start:
        """Returns what makes the basis that power iterations begin with."""

        def drawn(index: int, columns: int, device: torch.device) -> Tensor:
            rank = min(self.own.r, columns)
            tensors = [(self.blocks[index].address, columns * rank)]
            kernels, seed = self.engine.kernels, step.once("activations")
            return kernels.draw(seed, RIGHT_STREAM, tensors, device)[0].view(columns, rank)

        return drawn


class Activations:
    """Watches the inputs of linear layers through one forward pass, and sums up their spans.

    Args:
        blocks: The blocks, [N].
        layers: Indices of the blocks whose layers are watched.
        start: From index, columns and device to a first basis [I, r].
    """

    def __init__(self, blocks: Blocks, layers: Sequence[int], start: Start) -> None:
        self.blocks, self.layers, self.start = blocks, layers, start
        self._bases: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the forward passes inside."""
        hooks = [
            self.blocks[index].owners[0].module.register_forward_pre_hook(self._hook(index))
            for index in self.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            tokens = inputs[0].detach().flatten(0, -2).float()
            basis = self._bases.get(index)
            if basis is None:
                basis = self.start(index, tokens.shape[1], tokens.device)
            for _ in range(ITERATIONS):
                basis = orthonormal(tokens.t() @ (tokens @ basis))
            self._bases[index] = basis

        return look

    def basis(self, index: int) -> np.ndarray:
        """Returns a block's basis, fp32 [I, r]; of a layer that nothing reached, the first one."""
        if index not in self._bases:
            columns, device = self.blocks[index].shape[1], torch.device("cpu")
            self._bases[index] = orthonormal(self.start(index, columns, device))
        return np.asarray(self._bases[index].cpu().numpy())


def linear_layers(blocks: Blocks) -> list[int]:
    """Returns the indices of the blocks that are the weights of linear layers."""
    return [
        index
        for index, block in enumerate(blocks)
        if block.kind == "linear" and isinstance(block.owners[0].module, nn.Linear)
    ]
