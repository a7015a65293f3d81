"""The first-order trajectory that a fine-tuner is meta-trained along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.errors import run_error
from zopeft.meta.gradients import Consumer, Descent
from zopeft.meta.settings import MetaSettings
from zopeft.meta.start_state import StartState
from zopeft.meta.summing import backward
from zopeft.ranks import ALONE, Ranks
from zopeft.tasks.one_forward import one_forward
from zopeft.training.likeness import compute_alike
from zopeft.training.parallel import check_weights

MAX_BAD_STEPS = 10
COMPARED = 100
"""Meta-steps after which ranks compare their weights."""
LossFunction = Callable[[Any, Any], Tensor]


class Trajectory:
    """A model on its way down by SGD, which can start again and is given back as it came.

    Inside ``with trajectory:`` the blocks alone ask for gradients and the model may move;
    afterwards, also after an exception, its weights are bit for bit those it came with.

    Args:
        model: The model; dropout is switched off.
        blocks: The blocks that are moved.
        engine: The engine over the blocks.
        loss_function: From model and batch to a 0-dim loss.
        settings: The settings.
        ranks: Who makes its steps together: each rank's batch is a part, and so is its loss.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks,
        engine: Engine,
        loss_function: LossFunction,
        settings: MetaSettings,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.model, self.blocks, self.engine = model, blocks, engine
        self.loss_function, self.settings = loss_function, settings
        self.resets = 0
        self._descent = Descent(blocks, settings.lr_model, settings.momentum)
        self._since_reset = self._bad = 0
        self._first: float | None = None
        self._running = 0.0
        self._stack = ExitStack()
        self._alike = False

    def __enter__(self) -> Trajectory:
        self.engine.adopt()
        self._start = StartState(self.blocks)
        self._stack.callback(self._start.close)
        self._stack.callback(self._go_back)
        # Unlike hardware rounds a step in unlike ways.
        device = self.blocks[0].parameter.device
        self._alike = self.ranks.several and compute_alike(self.ranks, device)
        self._stack.enter_context(only_blocks_trainable(self.model, self.blocks))
        was_training = self.model.training
        self._stack.callback(lambda: self.model.train(was_training))
        self.model.eval()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def _go_back(self) -> None:
        self._start.restore()
        self.engine.adopt()

    def backward(
        self, batch: Any, consumer: Consumer, loss: Tensor | None = None, again: bool = False
    ) -> float:
        """Hands the gradients of the batch's loss to `consumer`; returns the loss.

        Args:
            batch: The batch.
            consumer: Takes the gradients.
            loss: The batch's loss, where it has been made.
            again: Whether there is to be another backward pass through the same forward.
        """

        def made() -> Tensor:
            return self.loss_function(self.model, batch) if loss is None else loss

        return backward(self.blocks, consumer, made, self.ranks, again)

    def agreed(self, *numbers: float) -> tuple[float, ...]:
        """Returns what the first rank has of some numbers, which all of them are to go by."""
        if not self.ranks.several:
            return numbers
        return tuple(self.ranks.spread(torch.tensor(numbers, dtype=torch.float64)).tolist())

    def losses(self, batch: Any, draw: Callable[[], Any]) -> tuple[Tensor, Tensor, Any]:
        """Returns the losses of a batch and of what is drawn from it, of one forward pass.

        Args:
            batch: The batch.
            draw: Draws another batch of the same texts, and something that goes with it.

        Returns:
            The loss of the batch, the loss of the drawn one, and what goes with it.
        """
        with one_forward(), torch.enable_grad():
            loss = self.loss_function(self.model, batch)
            drawn, told = draw()
            return loss, self.loss_function(self.model, drawn), told

    def descend(
        self,
        batch: Any,
        seed: int,
        gradient_norm: float,
        share: float = 1.0,
        onlooker: Consumer | None = None,
        loss: Tensor | None = None,
    ) -> float:
        """Moves the model by one first-order step.

        No number that is not finite is ever written into a weight: where a block's gradient
        is not finite, that block and those whose gradients come later stay as they are, and
        `note` counts the step as a bad one, whatever its loss was (see `Descent`).

        Args:
            batch: The batch.
            seed: 64-bit key of the rounding bits.
            gradient_norm: Norm to clip by; not finite: nothing moves.
            share: Share of the learning rate to use.
            onlooker: Is shown each gradient before it is used.
            loss: The batch's loss, where it has been made.

        Returns:
            The loss before the step.
        """
        clip = self.settings.clip
        factor = clip / gradient_norm if clip and gradient_norm > clip else 1.0
        self._descent.begin(factor * share if math.isfinite(gradient_norm) else 0.0, seed)

        def consumer(parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
            if onlooker is not None:
                onlooker(parameter, indices, gradient)
            self._descent(parameter, indices, gradient)

        found = self.backward(batch, consumer, loss)
        found, spoilt = self.agreed(found, self._descent.spoilt)
        self._descent.spoilt = bool(spoilt)
        self.engine.adopt()
        return found

    def compare(self, steps: int, last: bool = False) -> None:
        """Now and then compares the weights of the ranks, which `steps` meta-steps have made.

        Args:
            steps: How many have been made.
            last: Whether there are no more to come.

        Raises:
            RunError: A rank has others than the first one; it is named.
        """
        if self._alike and (last or steps % COMPARED == 0):
            when = f"after meta-step {steps}"
            check_weights(self.ranks, self.blocks, when, "start again, and look after its machine")

    def note(self, loss: float) -> None:
        """Takes the loss of a finished meta-step and starts again where that is due.

        A step is bad where its loss or the gradient that `descend` met was not finite: the
        model goes back to its start.

        Args:
            loss: The loss.

        Raises:
            RunError: `MAX_BAD_STEPS` steps in a row were bad.
        """
        self._since_reset += 1
        if self._descent.spoilt or not math.isfinite(loss):
            self._bad += 1
            if self._bad >= MAX_BAD_STEPS:
                raise run_error(
                    "meta-training",
                    f"the loss or its gradient was not finite for {self._bad} steps in a row",
                    loss,
                    "lower meta.lr_model or meta.eps",
                )
            self.restart()
            return
        self._bad = 0
        if self._first is None:
            self._first = self._running = loss
        self._running = 0.9 * self._running + 0.1 * loss
        settings = self.settings
        due = bool(settings.reset_every) and self._since_reset >= settings.reset_every
        if due or self._running < settings.reset_below * self._first:
            self.restart()

    def restart(self) -> None:
        """Puts the model back to its start, bit for bit."""
        self._go_back()
        self._descent.reset()
        self.resets += 1
        self._since_reset, self._first = 0, None


@contextmanager
def only_blocks_trainable(model: nn.Module, blocks: Blocks) -> Iterator[None]:
    """Asks for gradients of the blocks' parameters alone."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    wanted = {id(block.parameter) for block in blocks}
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(before[name])
