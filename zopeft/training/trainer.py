"""ZOTrainer: transformers' Trainer with forward passes in place of backward ones."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from zopeft.blocks import Blocks
from zopeft.blocks.offloaded import Offload
from zopeft.errors import input_error
from zopeft.optim.estimator import Estimator
from zopeft.training.arguments import ZOTrainingArguments
from zopeft.training.making import LossFunction, Making

logger = logging.getLogger(__name__)


class ZOTrainerMixin(Making):
    """Makes a trainer one for zeroth-order methods.

    Stands first among the bases, before `transformers.Trainer` or a class made from it; the
    arguments are then both classes' too::

        class ZOSFTTrainer(ZOTrainerMixin, trl.SFTTrainer): ...

        @dataclass
        class ZOSFTConfig(ZOTrainingArguments, trl.SFTConfig): ...

    `training_step` estimates (probes apart or in one forward, dropout off), ``optimizer.step()``
    applies; everything else (data, schedule, callbacks, logging, evaluation, checkpoints)
    is the Trainer's own. Micro-batches of one step share their direction and their losses
    are averaged. In a distributed run every process draws the same noise and only losses
    are exchanged. The logged ``loss`` is the mean of the probes' losses, ``grad_norm`` the
    size of the projected gradient. Methods of order 1 take the Trainer's usual path.

    Each step is appended to ``journal.bin`` in the output folder.
    ``train(resume_from_checkpoint=True)`` goes on from the newest whole checkpoint, takes
    the steps after it from the journal without forward passes, and then goes on as if
    nothing had happened: the final weights are the same, bit for bit. It needs no
    checkpoint if there is a journal.

    Args:
        model: The model, or a `PeftModel`.
        args: The arguments.
        data_collator: Turns a list of examples into a batch.
        train_dataset: Examples to train on.
        eval_dataset: Examples to evaluate on.
        processing_class: The tokenizer, saved along with checkpoints.
        blocks: What to train, as `zopeft.discover` gives it; None for what it finds.
        finetuner: A `FineTuner`, its folder or hub id, for methods that need one; None for
            `args.finetuner`.
        loss_function: Called with model and batch, returns the loss as a 0-dim tensor;
            None for ``model(**batch).loss``. With a method ``stacked``, as
            `zopeft.probing.batch_loss.BatchLoss` describes it, its probes can be stacked, and
            with a method ``needed`` its batches packed.
        **options: Further arguments of the trainer beneath.

    Raises:
        InputError: An argument is missing or makes no sense with the others.
    """

    def __init__(
        self,
        model: Any = None,
        args: ZOTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        blocks: Blocks | None = None,
        finetuner: Any = None,
        loss_function: LossFunction | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(args, ZOTrainingArguments):
            raise input_error(
                "ZOTrainer args", "takes a ZOTrainingArguments", type(args).__name__, "pass one"
            )
        if loss_function is not None and options.get("compute_metrics") is not None:
            raise input_error(
                "ZOTrainer compute_metrics",
                "needs logits, and a loss_function gives none",
                None,
                "leave out one of the two",
            )
        options.update(
            model=model,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
        )
        super().__init__(args, blocks, options)
        self.finetuner = finetuner
        self.loss_function = loss_function
        self._last_loss = torch.zeros((), device=args.device)
        self._logged: tuple[int, float] | None = None
        # What the Trainer would print goes to the log: printing is left to the terminal.
        self.remove_callback(PrinterCallback)
        if args.order == 0 or loss_function is not None:
            # The loss is the plain mean of a batch, not a share of all accumulated tokens.
            self.model_accepts_loss_kwargs = False

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer, but without wrapping model and optimizer for gradients.

        There are none to exchange or to scale, and the optimizer's wrapper looks for an
        optional package at every step, which takes a millisecond.
        """
        super().create_accelerator_and_postprocess()
        if self.args.order == 0:
            accelerator: Any = self.accelerator
            prepare = accelerator.prepare_model

            def prepare_model(model: Any, device_placement: bool | None = None, **_: Any) -> Any:
                placed = False if Offload(model) else device_placement
                return prepare(model, device_placement=placed, evaluation_mode=True)

            accelerator.prepare_model = prepare_model
            accelerator.prepare_optimizer = lambda optimizer, device_placement=None: optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """As the Trainer, except that hooks put offloaded weights where they belong."""
        if not Offload(model):
            super()._move_model_to_device(model, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Estimates with one micro-batch, or takes the step's losses from the journal."""
        if self.args.order:
            return super().training_step(model, inputs, num_items_in_batch)
        if model.training:
            model.eval()
        if self._logged is None:
            self._logged = (self.state.global_step, time.perf_counter())
        method = self.method
        record = self.recording.due(method.steps)
        if record is not None:
            loss = method.recall(record)
        else:
            batch = self._prepare_inputs(inputs)
            loss = method.estimate(self._closure(model, batch, method.probing.layout))
        loss = loss.to(self.args.device)
        # A bad step is skipped by the method; in the running mean the last good loss stands in.
        self._last_loss = torch.where(loss.isfinite(), loss, self._last_loss)
        return self._last_loss / self.current_gradient_accumulation_steps

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluates a batch with the loss that is trained."""
        if self.loss_function is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.accelerator.autocast():
            loss = self.loss_function(model, self._prepare_inputs(inputs))
        return loss.detach().mean(), None, None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Leaves the Trainer's gradients alone: `log` has the projected one."""
        return None if self.args.order == 0 else super()._get_grad_norm(model, grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the projected gradient and the speed since the last entry."""
        if "loss" in logs:
            record = getattr(self.method, "last_record", None)
            if record is not None:
                squares = [g * g for g in record.projected_grads]
                logs["grad_norm"] = (sum(squares) / len(squares)) ** 0.5
            logs.update(self._speed())
        logger.info("step %d: %s", self.state.global_step, logs)
        super().log(logs, start_time)

    def _speed(self) -> dict[str, float]:
        """Steps a second since the last entry; nothing for the first one."""
        before, self._logged = self._logged, (self.state.global_step, time.perf_counter())
        if before is None or before[0] >= self.state.global_step:
            return {}
        seconds = max(self._logged[1] - before[1], 1e-9)
        return {"steps_per_second": (self.state.global_step - before[0]) / seconds}

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Two operations a weight and token of each of the step's forward passes."""
        if self.args.order:
            return int(super().floating_point_ops(inputs))
        ids = inputs.get("input_ids")
        passes = Estimator(self.args.directions, self.args.sides).forwards
        return 0 if ids is None else 2 * passes * self._weights * ids.numel()

    @functools.cached_property
    def _weights(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


class ZOTrainer(ZOTrainerMixin, Trainer):
    """A `transformers.Trainer` for zeroth-order methods; see `ZOTrainerMixin`."""
