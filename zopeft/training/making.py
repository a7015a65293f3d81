"""What a trainer trains with: its method, its learning rate settled, and its loss."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zopeft.errors import input_error
from zopeft.methods import METHODS
from zopeft.optim.options import options_from
from zopeft.optim.shown_rate import guard
from zopeft.probing.batch_loss import BatchLoss
from zopeft.probing.packed import PADDED, laid_out
from zopeft.probing.trial import Choice
from zopeft.tasks.frequency import frequency_options
from zopeft.training.layout import AS_BEGUN, first_choice
from zopeft.training.process_loss import ProcessLoss
from zopeft.training.resumable import Resumable

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor]


class Making(Resumable):
    """The part of a trainer that makes its method and its loss; arguments as of `Resumable`.

    Attributes:
        finetuner: A `FineTuner`, its folder or hub id; None for that of the arguments.
        loss_function: From model and batch to a loss; None for the model's own.
        layout: How batches are laid out, and why not packed; settled when training begins.
    """

    layout = Choice(PADDED, "not settled yet")
    finetuner: Any = None
    loss_function: LossFunction | None = None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the method over the blocks; ``learning_rate="auto"`` is settled here."""
        if self.optimizer is None:
            self.optimizer = self._made()
        self._settle(self.optimizer)
        return self.optimizer

    def _made(self) -> torch.optim.Optimizer:
        """Returns the method over the blocks, with all that the arguments say of it."""
        args, blocks = self.args, self._find_blocks()
        kind = METHODS[args.method]
        options = {"lr": args.learning_rate, **options_from(kind, args)}
        if kind.needs_finetuner:
            options["finetuner"] = self._find_finetuner()
        if args.order == 0:
            given = options.get("finetuner")
            options |= frequency_options(args.rows, given, blocks, [self.train_dataset])
        return kind(blocks, **options)

    def _settle(self, method: Any) -> None:
        """Settles what depends on the run: layout, how probes are taken, and ``lr="auto"``.

        The rate is settled before the schedule is made, which multiplies what is found here.
        A run that is resumed from its journal takes the rate that it began with from there, and
        from a checkpoint alone all of it.
        """
        journal, checkpoint = self.recording.journal, self._resumed and self._resumed[0]
        if self.args.order == 0 and self.args.world_size > 1:
            method.engine.reads.agree = self._read_anywhere
        if journal is not None:
            method.probing.most_tokens = journal.header.settings.get("stacked_tokens", 0)
        if self.args.order == 0:
            self._settle_layout(method)
        if not getattr(method, "auto", False):
            return
        if journal is not None:
            method.begin_rate(journal.header.rate, journal.header.learning_rate)
        elif checkpoint is None:
            self._calibrate(method)

    def _settle_layout(self, method: Any) -> None:
        """Settles how batches are laid out: tried out for a new run, and else as it began."""
        journal = self.recording.journal
        if journal is not None:
            way = str(journal.header.settings.get("layout", PADDED))
            self.layout = Choice(way, AS_BEGUN)
        elif self._resumed is not None:
            # What the checkpoint holds is about to be loaded.
            self.layout = Choice(method.probing.layout, AS_BEGUN)
        else:
            self.model.eval()
            self.layout = first_choice(self, self._process_loss(), self._first_on_device)
        method.probing.layout = self.layout.way

    def _first_on_device(self) -> Any:
        return self._prepare_inputs(self._first_batch())

    def _closure(self, model: Any, batch: Any, way: str) -> BatchLoss:
        """Returns the loss of a batch, laid out."""
        loss = self._process_loss()
        return BatchLoss(model, laid_out(model, batch, loss, way), loss)

    def _read_anywhere(self, read: Tensor) -> Tensor:
        """Returns which blocks any process of the run has read, from what this one has."""
        every: Tensor = self.accelerator.gather(read.to(self.args.device).unsqueeze(0))
        return every.amax(0).cpu()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer; a running learning rate stays a factor on what the schedule makes."""
        if self.args.order:
            return super().create_scheduler(num_training_steps, optimizer)
        method = self.method
        # A run that went before may have left the rate of its last step.
        method.shown.hide(method.param_groups)
        return guard(super().create_scheduler(num_training_steps, optimizer))

    def _find_finetuner(self) -> Any:
        given = self.finetuner if self.finetuner is not None else self.args.finetuner
        if not given:
            raise input_error(
                "finetuner",
                f"method {self.args.method!r} needs a fine-tuner",
                None,
                "give its folder or hub id",
            )
        if isinstance(given, str | Path):
            from zopeft.finetuner import FineTuner

            given = FineTuner.from_pretrained(str(given))
        self.finetuner = given
        return given

    def _calibrate(self, method: Any) -> None:
        """Has the learning rate proposed from the first training batch."""
        batch = self._first_on_device()
        self.model.eval()
        rate = method.calibrate(self._closure(self.model, batch, method.probing.layout))
        logger.info("learning rate %g: %s", rate, method.lr_reason)

    def _first_batch(self) -> dict[str, Any]:
        """Returns the batch that training begins with, leaving all generators as they were."""
        with torch.random.fork_rng(devices=[]):
            loader = self.get_train_dataloader()
            if isinstance(loader.dataset, torch.utils.data.IterableDataset):
                options: dict[str, Any] = {"batch_size": self._train_batch_size}
            else:
                options = {"batch_sampler": loader.batch_sampler}
            plain = DataLoader(loader.dataset, collate_fn=loader.collate_fn, **options)
            return dict(next(iter(plain)))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Returns `loss_function`'s loss if there is one, else the model's own."""
        if self.loss_function is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.loss_function(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _process_loss(self) -> ProcessLoss:
        """Returns `compute_loss` as what all processes of the run share."""
        return ProcessLoss(self, Making)
