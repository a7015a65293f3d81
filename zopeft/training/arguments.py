"""The arguments of a ZOTrainer: those of transformers, with a method and its settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from zopeft.errors import input_error
from zopeft.methods import METHODS
from zopeft.optim.estimator import Estimator
from zopeft.probing.trial import LAYOUTS
from zopeft.training.grid import PARALLEL


@dataclass
class ZOTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` for zeroth-order (and baseline first-order) methods.

    All arguments of transformers keep their meaning. Some have another default: a constant
    learning-rate schedule (the usual one for zeroth-order methods), no gradient clipping,
    columns that the model's forward does not know are kept, nothing is reported to other
    services, and nothing in the loop waits for the device.

    Args:
        method: A name of `zopeft.methods.METHODS`.
        finetuner: Folder or hub id of a fine-tuner, for methods that need one.
        learning_rate: In the units of the weights, or "auto" for what the steps'
            own losses ask for (`zopeft.optim.thrifty`).
        eps: Finite-difference step in the units of the weights; None for the default of
            the space that is trained.
        noise: Name of the noise (`zopeft.noise.NOISES`).
        rank: Rank of low_rank noise, 1 to 64.
        max_bad_steps: Steps in a row with a loss that is not finite before giving up.
        rows: "frequency" scales the rows of token embeddings by how often their tokens occur
            in the training data, "none" does not; None for what the fine-tuner was learned
            with ("none" without one).
        clip: Largest projected gradient, in multiples of the running root mean square of
            those before; 0 for no clipping; None for 2 with "auto", else 0.
        probes: "stacked" for all probes in one forward, "separate" for a forward each, "auto"
            by the size of the batch, see `zopeft.probing.probing.Probing`.
        layout: "packed" has the texts of a batch share rows, and what they begin with where the
            loss allows it; "padded" runs batches as the collator makes them; "auto" packs where
            the first batch has the same loss both ways, see `zopeft.probing.trial`. A run that is
            resumed goes on as it began.
        directions: Directions a step, 1 to 64.
        sides: "two" for a pair of forward passes a direction, "one" for one each and one at
            the weights themselves.
        normalise: Whether one-sided differences of losses are divided by their spread, see
            `zopeft.optim.estimator.Estimator`.
        method_options: The method's own options (its ``Options``), by name; None for its
            defaults.
        journal: Whether each step is appended to ``journal.bin`` in the output folder.
        journal_sync_steps: Steps between two waits for the disk.
        overwrite: Whether a journal that is in the output folder may be replaced.
        parallel: What the processes of a run share out: "rows" of the batch, each its own;
            "probes", all over the same batch, for the same steps whatever their number; "both".
        fingerprint_steps: Steps after which the processes compare fingerprints of the weights;
            0 never does.

    Raises:
        InputError: An argument is out of range, or makes no sense with the method.
    """

    method: str = "mezo"
    finetuner: str | None = None
    learning_rate: float | str = "auto"  # type: ignore[assignment]
    eps: float | None = None
    noise: str = "gaussian"
    rank: int = 4
    rows: str | None = None
    max_bad_steps: int = 10
    clip: float | None = None
    probes: str = "auto"
    layout: str = "auto"
    directions: int = 1
    sides: str = "two"
    normalise: bool = False
    method_options: dict[str, Any] | None = None
    journal: bool = True
    journal_sync_steps: int = 100
    overwrite: bool = False
    parallel: str = "rows"
    fingerprint_steps: int = 100

    lr_scheduler_type: Any = "constant"
    max_grad_norm: float = 0.0
    remove_unused_columns: bool = False
    report_to: Any = field(default="none")
    logging_nan_inf_filter: bool = False
    average_tokens_across_devices: bool = False

    def __post_init__(self) -> None:
        """Checks zopeft's arguments, then transformers' own."""
        self.order = int(METHODS[self.method].order)
        self._check_learning_rate()
        if self.rows not in (None, "none", "frequency"):
            raise input_error("rows", "must be 'none' or 'frequency'", self.rows)
        if self.layout not in LAYOUTS:
            raise input_error("layout", "unknown way of laying out batches", self.layout)
        if self.parallel not in PARALLEL:
            raise input_error(
                "parallel", "unknown way of sharing work", self.parallel, f"use one of {PARALLEL}"
            )
        if self.parallel != "rows" and self.probes == "stacked":
            do = "leave probes out, or share out rows"
            raise input_error("probes", "cannot be stacked and shared out", "stacked", do)
        if self.fingerprint_steps < 0:
            raise input_error("fingerprint_steps", "must be at least 0", self.fingerprint_steps)
        if self.max_bad_steps < 1:
            raise input_error("max_bad_steps", "must be at least 1", self.max_bad_steps)
        if self.journal_sync_steps < 1:
            raise input_error("journal_sync_steps", "must be at least 1", self.journal_sync_steps)
        if self.order == 0:
            Estimator(self.directions, self.sides, self.normalise)
            self._check_without_gradients()
        if self.data_seed is None:
            # Otherwise the order of the data would depend on the state of torch's own
            # generator when training begins, which differs when a run is resumed.
            self.data_seed = self.seed
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.order == 0:
            self._n_gpu = min(1, self.n_gpu)

    def _check_learning_rate(self) -> None:
        rate = self.learning_rate
        if rate == "auto":
            return
        try:
            self.learning_rate = float(rate)
        except (TypeError, ValueError):
            raise input_error("learning_rate", "must be a number or 'auto'", rate) from None
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise input_error("learning_rate", "must be a number >= 0 or 'auto'", rate)

    def _check_without_gradients(self) -> None:
        """Refuses what only makes sense with gradients, or cannot be resumed exactly."""
        for name, on, do in (
            ("fp16", self.fp16, "load the model with dtype=torch.float16 instead"),
            ("gradient_checkpointing", self.gradient_checkpointing, "leave it out"),
            ("activation_checkpointing", self.activation_checkpointing, "leave it out"),
            ("max_grad_norm", self.max_grad_norm > 0, "leave it at 0"),
            ("label_smoothing_factor", self.label_smoothing_factor, "pass a loss_function"),
            ("neftune_noise_alpha", self.neftune_noise_alpha, "leave it out"),
            ("auto_find_batch_size", self.auto_find_batch_size, "choose a batch size"),
            ("deepspeed", self.deepspeed, "use torchrun without it"),
            ("fsdp", self.fsdp, "use torchrun without it"),
        ):
            if on:
                raise input_error(
                    name, f"has no meaning for method {self.method!r}", getattr(self, name), do
                )
