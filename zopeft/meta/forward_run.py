"""A model that forward passes look at and zeroth-order steps move, given back as it came."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.engine.direction import Direction
from zopeft.errors import run_error
from zopeft.meta.start_state import StartState
from zopeft.meta.trajectory import MAX_BAD_STEPS, LossFunction
from zopeft.probing.pair import probe_pair


class ForwardRun:
    """Losses of batches and along directions, none of which autograd is asked about.

    Inside ``with run:`` the model may move; afterwards, also after an exception, its weights are
    bit for bit those it came with. Weights that are offloaded, and scales of quantised layers,
    stay where they are: of those no copy is kept to go back to.

    Args:
        model: The model, as `without_gradients` has it.
        blocks: The blocks.
        engine: The engine over the blocks.
        loss_function: From model and batch to a 0-dim loss.
        eps: Finite-difference step.
        reset_every: Steps after which the model goes back to its start; 0 for never.

    Attributes:
        forward_passes: How many were made.
        resets: How often the model went back.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks,
        engine: Engine,
        loss_function: LossFunction,
        eps: float,
        reset_every: int = 0,
    ) -> None:
        self.model, self.blocks, self.engine = model, blocks, engine
        self.loss_function, self.eps, self.reset_every = loss_function, eps, reset_every
        self.forward_passes = self.resets = 0
        self.moves = not engine.offload and blocks.space != "scales"
        self._since = self._bad = 0
        self._stack = ExitStack()

    def __enter__(self) -> ForwardRun:
        self.engine.adopt()
        if self.moves:
            self._start = StartState(self.blocks)
            self._stack.callback(self._start.close)
            self._stack.callback(self._go_back)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _go_back(self) -> None:
        self._start.restore()
        self.engine.adopt()

    def loss(self, batch: Any) -> float:
        """Returns the loss of a batch at the weights as they are, or as a probe shows them."""
        self.forward_passes += 1
        with torch.no_grad():
            return float(self.loss_function(self.model, batch))

    def pair(self, batch: Any, direction: Direction) -> tuple[float, float]:
        """Returns a batch's losses at ``theta + eps u`` and ``theta - eps u``."""

        def closure() -> Tensor:
            return torch.tensor(self.loss(batch), dtype=torch.float64)

        return probe_pair(self.engine, closure, direction, self.eps)

    def move(self, direction: Direction, coefficients: Tensor) -> None:
        """Writes ``theta_i <- theta_i + coefficient_i u_i``, where the model may move.

        Args:
            direction: The direction.
            coefficients: [N]; with one that is not finite nothing moves.
        """
        if self.moves and bool(coefficients.isfinite().all()):
            self.engine.update(direction, coefficients)

    def note(self, loss: float) -> None:
        """Takes the loss of a finished step, and goes back to the start where that is due.

        Raises:
            RunError: It was not finite for `MAX_BAD_STEPS` steps in a row.
        """
        self._since += 1
        good = math.isfinite(loss)
        self._bad = 0 if good else self._bad + 1
        if self._bad >= MAX_BAD_STEPS:
            raise run_error(
                "meta-training",
                f"the loss was not finite for {self._bad} steps in a row",
                loss,
                "lower meta.eps",
            )
        if self.moves and (not good or self._since == self.reset_every):
            self._go_back()
            self._since = 0
            self.resets += 1


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Has no parameter of a model ask for a gradient, and switches dropout off, inside."""
    asked = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
        model.train(training)
