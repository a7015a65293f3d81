"""The loss that a trainer trains: in autocast, averaged over the processes of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from zopeft.engine.copies import UnstackableError
from zopeft.probing.batch_loss import ModelLoss


class ProcessLoss:
    """A loss function of model and batch that is the same on each process.

    Args:
        trainer: The trainer; its `compute_loss` is what is trained.
        own: The class of zopeft's that defines it. Another one's is not known to be the
            same for copies of a batch.
    """

    def __init__(self, trainer: Any, own: type) -> None:
        self.trainer, self.own = trainer, own

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Returns the loss of a batch, 0-dim."""
        with self.trainer.accelerator.autocast():
            loss: Tensor = self.trainer.compute_loss(model, batch)
        return self._everywhere(loss)

    def stacked(self, model: nn.Module, batch: dict[str, Any], count: int) -> Tensor:
        """Returns the losses [count] of copies of a batch, from one forward.

        Raises:
            UnstackableError: The trainer's loss is for one batch at a time.
        """
        function = self._stackable()
        with self.trainer.accelerator.autocast():
            losses = function(model, batch, count)
        # One by one, as many exchanges as apart: another process may not stack its batch.
        return torch.stack([self._everywhere(loss) for loss in losses])

    def _stackable(self) -> Callable[..., Tensor]:
        """The function that does in one forward what `compute_loss` does."""
        trainer = self.trainer
        kinds = [kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind)]
        found, as_written = None, kinds[0] is self.own and "compute_loss" not in vars(trainer)
        if as_written and trainer.loss_function is not None:
            found = getattr(trainer.loss_function, "stacked", None)
        elif as_written and kinds[1] is Trainer and trainer.compute_loss_func is None:
            found = ModelLoss().stacked
        if found is None:
            raise UnstackableError("the trainer's loss is for one batch at a time", True)
        function: Callable[..., Tensor] = found
        return function

    def _everywhere(self, loss: Tensor) -> Tensor:
        if self.trainer.args.world_size > 1:
            # Gathered and then averaged by each, so that all have the same bits.
            loss = self.trainer.accelerator.gather(loss.detach().float().reshape(1)).mean()
        return loss
