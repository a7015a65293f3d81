"""ZOTrainer: transformers' Trainer with forward passes in place of backward ones."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from zopeft.blocks import Blocks, discover
from zopeft.blocks.offloaded import Offload
from zopeft.blocks.packing import keep_unpacked
from zopeft.blocks.shards import how_sharded
from zopeft.errors import RunError, input_error
from zopeft.methods import METHODS
from zopeft.optim.differing import Differing
from zopeft.optim.executor import Executor
from zopeft.optim.shown_rate import guard
from zopeft.probing.packed import PADDED, laid_out
from zopeft.probing.trial import Choice
from zopeft.ranks import ALONE, begin
from zopeft.ranks.losing import LostError
from zopeft.staging import unveil
from zopeft.tasks.stream import StreamView, TaskStream
from zopeft.training import checkpoints
from zopeft.training.arguments import ZOTrainingArguments
from zopeft.training.card import correct_card
from zopeft.training.grid import Grid, grid_of
from zopeft.training.held import held_together, refuse_held
from zopeft.training.loading import check_scheduler, load_weights, refused
from zopeft.training.making import finetuner_of, method_of, probes_of
from zopeft.training.mode import said_to_train
from zopeft.training.process_loss import ProcessLoss
from zopeft.training.recording import Recording, RecordingCallback
from zopeft.training.resuming import (
    Resumed,
    check_seen,
    finished,
    keep_last_good,
    where_from,
)
from zopeft.training.row_data import rows_of
from zopeft.training.scales import admitted
from zopeft.training.settling import closure, settle
from zopeft.training.streaming import replayed, view_of

if TYPE_CHECKING:
    from zopeft.finetuner import FineTuner

    Beneath = Trainer
else:
    Beneath = object

logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, dict[str, Any]], Tensor]


class ZOTrainerMixin(Beneath):
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
    are exchanged; `args.parallel` says what they share out. The logged ``loss`` is the mean of
    the probes' losses, ``grad_norm`` the size of the projected gradient. Methods of order 1 take
    the Trainer's usual path.

    Each step is appended to ``journal.bin`` in the output folder.
    ``train(resume_from_checkpoint=True)`` goes on from the newest whole checkpoint, takes
    the steps after it from the journal without forward passes, and then goes on as if
    nothing had happened: the final weights are the same, bit for bit. It needs no
    checkpoint if there is a journal.

    Args:
        model: The model, or a `PeftModel`.
        args: The arguments.
        data_collator: Turns a list of examples into a batch.
        train_dataset: Examples to train on. A `zopeft.tasks.stream.TaskStream` is read as its
            examples are needed, and by a run that is resumed from where that one goes on.
        eval_dataset: Examples to evaluate on.
        processing_class: The tokenizer, saved along with checkpoints.
        blocks: What to train, as `zopeft.discover` gives it; None for what it finds.
        finetuner: A `FineTuner`, its folder or hub id, for methods that need one; None for
            `args.finetuner`.
        loss_function: Called with model and batch, returns the loss as a 0-dim tensor;
            None for ``model(**batch).loss``. With a method ``stacked``, as
            `zopeft.probing.batch_loss.BatchLoss` describes it, its probes can be stacked, and
            with a method ``needed`` its batches packed. A method ``begin`` is told the number of
            the step, from 0, before each batch.
        executor: Called with the method, returns who finds its losses (`zopeft.optim.executor`);
            None for forward passes in this process, or shared out by `args.parallel`.
        **options: Further arguments of the trainer beneath.

    Raises:
        InputError: An argument is missing or makes no sense with the others.
    """

    args: ZOTrainingArguments
    model: Any
    blocks: Blocks | None = None
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    finetuner: FineTuner | str | Path | None = None
    loss_function: LossFunction | None = None
    begun_rows: int | None = None

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
        executor: Callable[[Any], Executor] | None = None,
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
        if isinstance(train_dataset, TaskStream):
            train_dataset = view_of(train_dataset, args)
        options.update(
            model=model,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
        )
        with admitted(model, blocks):
            super().__init__(args=args, **options)
        # Also where it is evaluated or saved before training looks for blocks.
        keep_unpacked(self.model)
        self.blocks = blocks
        self.finetuner, self.loss_function = finetuner, loss_function
        self.executor = executor
        self.layout = Choice(PADDED, "not settled yet")
        self.differing: Differing | None = None
        self.resumed: Resumed | None = None
        self.steps_planned = max(0, args.max_steps)
        self.recording = Recording(
            str(args.output_dir), self.is_world_process_zero(), args.journal_sync_steps
        )
        if args.order == 0:
            self.add_callback(RecordingCallback(self))
        self.ranks = begin(args.ddp_timeout) if args.world_size > 1 else ALONE
        self.is_asked = False
        self._given_optimizer = self.optimizer
        self._last_loss = torch.zeros((), device=args.device)
        self._logged: tuple[int, float] | None = None
        if args.order == 0 or loss_function is not None:
            # The loss is the plain mean of a batch, not a share of all accumulated tokens.
            self.model_accepts_loss_kwargs = False

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer, but without wrapping model and optimizer for gradients.

        There are none to exchange or to scale, and the optimizer's wrapper looks for an
        optional package at every step, which takes a millisecond.
        """
        with held_together(self.model):
            super().create_accelerator_and_postprocess()
        if self.args.order == 0:
            accelerator: Any = self.accelerator
            prepare = accelerator.prepare_model

            def prepare_model(model: Any, device_placement: bool | None = None, **_: Any) -> Any:
                placed = False if Offload(model) else device_placement
                return prepare(model, device_placement=placed, evaluation_mode=True)

            verify = accelerator.verify_device_map
            # It refuses offloading in several processes: gradients could not be exchanged.
            accelerator.verify_device_map = lambda model: not Offload(model) and verify(model)
            accelerator.prepare_model = prepare_model
            accelerator.prepare_optimizer = lambda optimizer, device_placement=None: optimizer

    @property
    def grid(self) -> Grid:
        """How the processes of the run share the work of a step."""
        args, count = self.args, self.ranks.count
        if args.order or not self.ranks.several:
            return Grid(count)
        held = how_sharded(self.model)
        if held:
            # All take part in each forward pass; with tensor parallelism over the same rows.
            return Grid(1, count) if held == "tensor" else Grid(count)
        return grid_of(args.parallel, count, probes_of(args), self.begun_rows)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Has losses be those of this process alone inside, where its executor asks for them."""
        self.is_asked = True
        try:
            yield
        finally:
            self.is_asked = False

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer; processes that share out probes are given the same batches."""
        if self.args.order or not self.ranks.several:
            return super().get_train_dataloader()
        with rows_of(self.accelerator, self.grid, self.ranks.number):
            return super().get_train_dataloader()

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """As the Trainer, except that hooks put offloaded weights where they belong."""
        if not Offload(model):
            super()._move_model_to_device(model, device)

    @property
    def method(self) -> Any:
        """The optimizer itself, without accelerate's wrapper; None before training."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def find_blocks(self) -> Blocks:
        """Returns what is trained, looked for where it was not given."""
        if self.blocks is None:
            self.blocks = discover(self.model)
        return self.blocks

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the method over the blocks; ``learning_rate="auto"`` is settled here."""
        if self.optimizer is None:
            given = None
            if METHODS[self.args.method].needs_finetuner:
                self.finetuner = given = finetuner_of(self.finetuner, self.args)
            self.optimizer = method_of(self.args, self.find_blocks(), given, self.train_dataset)
        if self.executor is not None:
            if self.ranks.several:
                do = "start one process, or leave the executor out"
                raise input_error("executor", "serves one process", self.ranks.count, do)
            self.method.executor = self.executor(self.method)
        settle(self, self.optimizer)
        found: torch.optim.Optimizer = self.optimizer
        return found

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer; what is streamed has an order of its own."""
        if isinstance(self.train_dataset, StreamView):
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """As the Trainer; how many steps are planned, lr="auto" has to know."""
        self.steps_planned = num_training_steps
        super().create_optimizer_and_scheduler(num_training_steps)

    def on_settled(self) -> None:
        """Called when `method` and `layout` are settled, before lr="auto" is."""

    def on_looking(self, line: str) -> None:
        """Called with a line on what is looked for before the first step, which may take long."""
        logger.info("%s", line)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer; a running learning rate stays a factor on what the schedule makes."""
        if self.args.order:
            return super().create_scheduler(num_training_steps, optimizer)
        method = self.method
        # A run that went before may have left the rate of its last step.
        method.shown.hide(method.param_groups)
        return guard(super().create_scheduler(num_training_steps, optimizer))

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

    @property
    def process_loss(self) -> ProcessLoss:
        """`compute_loss` as what all processes of the run share."""
        return ProcessLoss(self, ZOTrainerMixin)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Trains, or goes on with a run that broke off.

        Args:
            resume_from_checkpoint: True to go on with the run in the output folder, from
                its newest whole checkpoint and its journal; a folder to go on from that
                checkpoint; None to start anew.
            *args: As in `transformers.Trainer.train`.
            **kwargs: As in `transformers.Trainer.train`.

        Returns:
            Steps, mean training loss and metrics.

        Raises:
            InputError: There are no examples; there is nothing to resume from, or it is of
                another run; or the output folder holds a journal and is not to be overwritten.
            RunError: The loss was not finite for too many steps in a row. The last good
                state has been saved as a checkpoint.
        """
        if not self.train_dataset and not isinstance(self.train_dataset, IterableDataset):
            raise input_error("train_dataset", "is empty", None, "give at least one example")
        where = (self.args, self.recording, resume_from_checkpoint, self.find_blocks)
        with self.ranks.gate():
            self.resumed = where_from(*where)
        check_seen(self.ranks, self.recording)
        self.begun_rows = self.recording.begun_rows
        if isinstance(self.train_dataset, StreamView):
            self.train_dataset.unread = replayed(self)
        if self.resumed is None and self.optimizer is not self._given_optimizer:
            self.optimizer = self._given_optimizer
        checkpoint = self.resumed.checkpoint if self.resumed else None
        refuse_held(self.model, self.args.order, self.args.load_best_model_at_end, checkpoint)
        try:
            if checkpoint is not None:
                done = finished(self, checkpoint)
                if done is not None:
                    return done
            name = None if checkpoint is None else str(checkpoint)
            if self.args.order == 0:
                # A walk over all modules at every step, to clear gradients that never are.
                self.model.zero_grad = _nothing
            return super().train(name, *args, **kwargs)
        except LostError:
            raise
        except RunError:
            keep_last_good(self)
            raise
        finally:
            self.model.__dict__.pop("zero_grad", None)
            self.is_in_train = False
            self.recording.close()

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
            begin = getattr(self.loss_function, "begin", None)
            if begin is not None:
                begin(method.steps)
            loss = method.estimate(closure(self, model, batch))
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
        """Evaluates a batch with the loss that is trained, laid out as the run's batches are."""
        if self.loss_function is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        prepared = self._prepare_inputs(inputs)
        batch = dict(laid_out(model, prepared, self.loss_function, self.layout.way))
        with torch.no_grad(), self.accelerator.autocast():
            loss = self.loss_function(model, batch)
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
        trains = self.args.order == 0 and self.is_in_train
        with said_to_train(self.model) if trains and not _scores(logs) else nullcontext():
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
        return 0 if ids is None else 2 * self.method.forwards * self._weights * ids.numel()

    @functools.cached_property
    def _weights(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the Trainer, with what it would lose or pass over (`load_weights`)."""
        load = functools.partial(super()._load_from_checkpoint, resume_from_checkpoint, model)
        read = self.model if model is None else model
        with refused(resume_from_checkpoint):
            load_weights(read, self.find_blocks(), resume_from_checkpoint, load)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer; what cannot be read is told in a line."""
        with refused(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and self.lr_scheduler is not None:
                check_scheduler(self.lr_scheduler, len(self.optimizer.param_groups))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer; what cannot be read is told in a line."""
        with refused(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        folder, load = str(self.state.best_model_checkpoint), super()._load_best_model
        with refused(folder):
            load_weights(self.model, self.find_blocks(), folder, load)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer, with the method in place of the optimizer that it would name."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            correct_card(Path(str(self.args.output_dir), "README.md"), self.args, self.method)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the Trainer, for all who may read the folder."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            unveil(Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer, with the journal on the disk first and a mark of wholeness last.

        Of a model that processes hold together the journal is all that is kept.
        """
        if how_sharded(self.model):
            self.recording.sync()
            return
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial=trial)) / name
        self.recording.sync()
        if self.is_world_process_zero():
            checkpoints.unseal(folder)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.seal(folder, self.state.global_step, self.recording.run)


class ZOTrainer(ZOTrainerMixin, Trainer):
    """A `transformers.Trainer` for zeroth-order methods; see `ZOTrainerMixin`."""


def _scores(logs: dict[str, float]) -> bool:
    """Whether an entry of the log is that of an evaluation."""
    return any(name.startswith("eval_") for name in logs)


def _nothing(set_to_none: bool = True) -> None:
    """Stands in for ``model.zero_grad`` where there are no gradients."""
