"""The loss that a trainer trains: in autocast, averaged over the processes of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from zopeft.engine.carrier import UnstackableError
from zopeft.errors import input_error
from zopeft.probing.model_loss import ModelLoss, as_inputs
from zopeft.probing.row_losses import telling
from zopeft.training.mode import said_to_train


class ProcessLoss:
    """A loss function of model and batch that is the same on each process.

    Args:
        trainer: The trainer; its `compute_loss` is what is trained.
        own: The class of zopeft's that defines it. Another one's is not known to be the
            same for copies of a batch.
    """

    def __init__(self, trainer: Any, own: type) -> None:
        self.trainer, self.own = trainer, own

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch, 0-dim."""
        return self._everywhere(self.alone(model, batch))

    @property
    def alone(self) -> LocalLoss:
        """The loss of this process, which asks for nothing from the others."""
        return LocalLoss(self)

    @property
    def own_loss(self) -> Any:
        """The loss function that it comes to; None where that is not known."""
        return self._own()

    @property
    def needed(self) -> Callable[[Mapping[str, Any]], Tensor | None]:
        """What the loss reads of a batch, see `BatchLoss`.

        Raises:
            AttributeError: The trainer's loss does not say.
        """
        found = self._own()
        if not hasattr(found, "needed"):
            raise AttributeError("the trainer's loss does not say what it needs of a batch")
        needed: Callable[[Mapping[str, Any]], Tensor | None] = found.needed
        return needed

    @property
    def shaped(self) -> Callable[[Tensor], Tensor | None]:
        """What turns the losses of a step's probes into others, see `BatchLoss`."""
        found: Callable[[Tensor], Tensor | None] = self.trainer.loss_function.shaped
        return found

    @property
    def flat(self) -> bool:
        """Whether the loss is flat in places, as the negative of a score is."""
        return bool(getattr(self.trainer.loss_function, "flat", False))

    @property
    def problem(self) -> str:
        """Why the last batch had no loss; "" if it had, or the loss does not say."""
        return str(getattr(self.trainer.loss_function, "problem", ""))

    @property
    def tokens(self) -> Callable[[Mapping[str, Any]], int]:
        """The tokens of most of a batch's forwards, see `BatchLoss`; missing for one forward."""
        found: Callable[[Mapping[str, Any]], int] = self.trainer.loss_function.tokens
        return found

    def stacked(self, model: nn.Module, batch: dict[str, Any], count: int) -> Tensor:
        """Returns the losses [count] of copies of a batch, from one forward.

        Raises:
            UnstackableError: The trainer's loss is for one batch at a time.
        """
        function = getattr(self._own(), "stacked", None)
        if function is None:
            raise UnstackableError("the trainer's loss is for one batch at a time", True)
        with self.trainer.accelerator.autocast():
            losses = function(model, batch, count)
        return self._each(losses)

    def grouped(
        self, model: nn.Module, batch: dict[str, Any], count: int, only: int | None
    ) -> Tensor:
        """Returns the losses of groups of the batch's examples, see `BatchLoss.grouped`.

        Raises:
            InputError: The trainer's loss is for whole batches.
            UnstackableError: The groups of this batch cannot be run in one forward.
        """
        function = getattr(self._own(), "grouped", None)
        if function is None:
            do = "give the trainer a loss_function with a method grouped, or choose another method"
            raise input_error("compute_loss", "gives no losses of single examples", None, do)
        with self.trainer.accelerator.autocast():
            losses: Tensor = function(model, batch, count, only)
        return self._each(losses) if only is None else self._everywhere(losses)

    def _each(self, losses: Tensor) -> Tensor:
        # One by one, as many exchanges as apart: another process may not stack its batch. (A
        # step's probes are exchanged together, by its executor.)
        return torch.stack([self._everywhere(loss) for loss in losses])

    def _own(self) -> Any:
        """The loss function that `compute_loss` comes to; None where that is not known."""
        trainer, kinds = self.trainer, self._kinds()
        if kinds[0] is not self.own or "compute_loss" in vars(trainer):
            return None
        if trainer.loss_function is not None:
            return trainer.loss_function
        plain = kinds[1] is Trainer and trainer.compute_loss_func is None
        return ModelLoss() if plain else None

    def _kinds(self) -> list[type]:
        """The classes that have a ``compute_loss`` of their own."""
        return [kind for kind in type(self.trainer).__mro__ if "compute_loss" in vars(kind)]

    @property
    def is_plain(self) -> bool:
        """Whether ``compute_loss`` is that of zopeft and of transformers alone."""
        return "compute_loss" not in vars(self.trainer) and self._kinds() == [self.own, Trainer]

    def _everywhere(self, loss: Tensor) -> Tensor:
        trainer = self.trainer
        if trainer.grid.rows > 1 and not trainer.is_asked:
            # The same numbers, averaged by each, so that all have the same bits.
            every = trainer.ranks.compared(loss.detach().float().reshape(1))
            loss = trainer.grid.first_column(every).mean()
        return loss


class LocalLoss:
    """The loss of one process.

    Args:
        shared: The loss of all of them.
    """

    def __init__(self, shared: ProcessLoss) -> None:
        self.shared, self.trainer = shared, shared.trainer

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch, 0-dim."""
        with self.trainer.accelerator.autocast():
            if self.trainer.loss_function is None:
                with as_inputs(model, batch) as inputs, telling(model, batch), self._filed():
                    loss: Tensor = self.trainer.compute_loss(model, inputs)
            else:
                loss = self.trainer.compute_loss(model, batch)
        return loss

    def _filed(self) -> AbstractContextManager[None]:
        """Has another class's ``compute_loss`` file what it measures under training."""
        return nullcontext() if self.shared.is_plain else said_to_train(self.trainer.model)

    @property
    def dtype(self) -> torch.dtype | None:
        """What products are rounded to beyond the model's own dtype; None for nothing."""
        return torch.bfloat16 if self.trainer.args.bf16 else None

    @property
    def needed(self) -> Callable[[Mapping[str, Any]], Tensor | None]:
        """As of `ProcessLoss`."""
        return self.shared.needed
