"""A Trainer whose runs can be killed and resumed, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from zopeft.blocks import Blocks
from zopeft.blocks.packing import keep_unpacked
from zopeft.errors import RunError, input_error, run_error
from zopeft.finetuner.digest import digest_like
from zopeft.journal.start import fingerprint
from zopeft.probing.packed import PADDED
from zopeft.staging import unveil
from zopeft.training import checkpoints
from zopeft.training.arguments import ZOTrainingArguments
from zopeft.training.loading import Loading
from zopeft.training.recording import Recording, RecordingCallback
from zopeft.training.scales import admitted


class Resumable(Loading):
    """Makes a trainer keep a journal and mark checkpoints that are whole.

    Stands before `transformers.Trainer`, or a class made from it, among the bases.

    Resuming is: the newest whole checkpoint, then the steps that the journal holds beyond
    it, taken through the Trainer's usual loop but without forward passes, so that data
    order, schedule and callbacks stay the Trainer's own.

    Args:
        args: The arguments.
        blocks: What to train; None for what `zopeft.discover` finds.
        options: Further arguments of the trainer beneath.
    """

    args: ZOTrainingArguments
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any

    def __init__(
        self, args: ZOTrainingArguments, blocks: Blocks | None, options: dict[str, Any]
    ) -> None:
        with admitted(options.get("model"), blocks):
            super().__init__(args=args, **options)
        # Also where it is evaluated or saved before training looks for blocks.
        keep_unpacked(self.model)
        self.blocks = blocks
        self._given_optimizer = self.optimizer
        self._resumed: tuple[Path | None, str] | None = None
        self.recording = Recording(
            str(args.output_dir), self.is_world_process_zero(), args.journal_sync_steps
        )
        if args.order == 0:
            self.add_callback(RecordingCallback(self))

    @property
    def method(self) -> Any:
        """The optimizer itself, without accelerate's wrapper; None before training."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

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
        self._resumed = self._where_from(resume_from_checkpoint)
        if self._resumed is None and self.optimizer is not self._given_optimizer:
            self.optimizer = self._given_optimizer
        checkpoint = self._resumed[0] if self._resumed else None
        try:
            if checkpoint is not None:
                finished = self._finished(checkpoint)
                if finished is not None:
                    return finished
            name = None if checkpoint is None else str(checkpoint)
            if self.args.order == 0:
                # A walk over all modules at every step, to clear gradients that never are.
                self.model.zero_grad = _nothing
            return super().train(name, *args, **kwargs)
        except RunError:
            self._keep_last_good()
            raise
        finally:
            self.model.__dict__.pop("zero_grad", None)
            self.is_in_train = False
            self.recording.close()

    def _where_from(self, resume: str | bool | None) -> tuple[Path | None, str] | None:
        """Returns the checkpoint (or None) and the run's name; None to start anew."""
        journaled = self.args.order == 0 and self.args.journal
        self.recording.run = ""
        if not resume:
            if journaled and self.recording.writes:
                self.recording.refuse_old(self.args.overwrite)
            return None
        journal = None
        if journaled:
            with self.args.main_process_first(desc="opening the journal"):
                journal = self.recording.open()
        run = None if journal is None else journal.header.run
        if isinstance(resume, bool):
            checkpoint = checkpoints.newest_checkpoint(str(self.args.output_dir), run)
        else:
            checkpoint = checkpoints.given_checkpoint(resume)
        if checkpoint is None:
            if journal is None:
                raise input_error(
                    "resume",
                    "there is neither a whole checkpoint nor a journal",
                    self.args.output_dir,
                    "start without resuming",
                )
            self.recording.to_start(self._find_blocks())
            return None, journal.header.run
        found = checkpoints.read_seal(checkpoint) or {}
        return checkpoint, run or str(found.get("run", ""))

    def _finished(self, checkpoint: Path) -> TrainOutput | None:
        """Loads a checkpoint of a run that has made all of its steps; None for others.

        The Trainer itself would make one step more.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        steps = self.args.max_steps
        if steps <= 0:
            steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if state.global_step < steps:
            return None
        self._load_from_checkpoint(str(checkpoint))
        self.create_optimizer_and_scheduler(steps)
        self._load_optimizer_and_scheduler(str(checkpoint))
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        mean = sum(losses) / len(losses) if losses else float("nan")
        return TrainOutput(state.global_step, mean, {"train_loss": mean})

    def _keep_last_good(self) -> None:
        """Saves weights and optimizer as the last good step left them."""
        method = self.method
        if method is None or getattr(method, "steps", 0) == 0 or not self.is_in_train:
            return
        self.recording.append(method.last_record)
        if method.steps == self.state.global_step + 1:
            # The step that gave up has been counted by the method, and changed no weight.
            self.lr_scheduler.step()
            self.state.global_step += 1
        self._save_checkpoint(self.model, trial=None)

    def begin_recording(self) -> None:
        """Checks that all processes and the journal are where training begins."""
        method = self.method
        if self._resumed is not None and method.steps != self.state.global_step:
            raise input_error(
                "resume",
                f"the checkpoint is at step {self.state.global_step}, its optimizer at another",
                method.steps,
                "resume from a checkpoint that was saved with save_only_model=False",
            )
        self._check_processes(method.blocks)
        if self.args.journal:
            run = "" if self._resumed is None else self._resumed[1]
            self.recording.begin(method, self._settings(), run)

    def _check_processes(self, blocks: Blocks) -> None:
        """Refuses to train if the processes of a distributed run hold different weights."""
        if self.args.world_size > 1:
            mine = torch.tensor([int(fingerprint(blocks)[:15], 16)], device=self.args.device)
            if self.accelerator.gather(mine).unique().numel() > 1:
                raise run_error(
                    "distributed",
                    "the processes start from different weights",
                    None,
                    "load the same model, and make adapters from the same seed",
                )

    def _settings(self) -> dict[str, Any]:
        """What the steps of this run depend on, besides weights and data."""
        args = self.args
        names = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "world_size",
            "data_seed",
            "learning_rate",
            "weight_decay",
            "mixed_precision",
        )
        settings: dict[str, Any] = {name: getattr(args, name) for name in names}
        settings["schedule"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        if settings["schedule"] != "constant":
            settings["max_steps"] = self.state.max_steps
        if hasattr(self.train_dataset, "__len__"):
            settings["examples"] = len(self.train_dataset)
        settings["eps"] = self.method.eps
        settings["rows"] = args.rows
        settings["clip"] = self.method.clip.factor
        settings["probes"] = args.probes
        settings["stacked_tokens"] = self.method.probing.most_tokens
        settings["layout"] = PADDED if args.layout == PADDED else self.method.probing.layout
        journal, finetuner = self.recording.journal, getattr(self.method, "finetuner", None)
        before = "" if journal is None else str(journal.header.settings.get("finetuner", ""))
        settings["finetuner"] = digest_like(finetuner, before)
        return settings

    def record_step(self) -> None:
        """Writes the step that the method has just applied to the journal."""
        self.recording.append(self.method.last_record)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the Trainer, for all who may read the folder."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            unveil(Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer, with the journal on the disk first and a mark of wholeness last."""
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial=trial)) / name
        self.recording.sync()
        if self.is_world_process_zero():
            checkpoints.unseal(folder)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.seal(folder, self.state.global_step, self.recording.run)


def _nothing(set_to_none: bool = True) -> None:
    """Stands in for ``model.zero_grad`` where there are no gradients."""
