"""Recording: how a training run writes its journal, and takes steps from it when resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from zopeft.blocks import Blocks
from zopeft.blocks.shards import how_sharded
from zopeft.errors import input_error
from zopeft.journal.header import header_of
from zopeft.journal.journal import Journal
from zopeft.journal.replay import to_start
from zopeft.journal.start import fingerprint, save_start
from zopeft.optim.record import StepRecord
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.training.identity import settings_of
from zopeft.training.likeness import check_likeness, compute_alike
from zopeft.training.parallel import check_weights

if TYPE_CHECKING:
    from zopeft.training.trainer import ZOTrainerMixin

JOURNAL = "journal.bin"
START = "journal_start.safetensors"


class Recording:
    """The journal of one training run.

    Every process of a distributed run has one; only the first writes.

    Args:
        folder: The run's output folder.
        writes: Whether this process writes.
        sync_steps: Steps between two waits for the disk.
    """

    def __init__(self, folder: str | Path, writes: bool, sync_steps: int) -> None:
        self.path = Path(folder) / JOURNAL
        self.writes = writes
        self.sync_steps = sync_steps
        self.journal: Journal | None = None
        self.run = ""
        self._tail: Iterator[StepRecord] | None = None
        self._next: StepRecord | None = None

    def refuse_old(self, overwrite: bool) -> None:
        """Refuses to start anew over a journal.

        Raises:
            InputError: There is one, and `overwrite` is off.
        """
        if self.path.exists() and not overwrite:
            raise input_error(
                "output_dir",
                "holds the journal of a run",
                str(self.path),
                "resume it, overwrite it, or choose another folder",
            )

    def open(self) -> Journal | None:
        """Opens the journal of the run that is to be resumed; None if there is none."""
        if self.path.exists():
            self.journal = Journal.open(self.path, self.writes, self.sync_steps)
            self.run = self.journal.header.run
        return self.journal

    @property
    def begun_rows(self) -> int | None:
        """Ranks that the rows of a step came from when the run began; None for a new one."""
        if self.journal is None:
            return None
        return int(self.journal.header.settings.get("world_size", 1))

    def to_start(self, blocks: Blocks) -> None:
        """Brings the blocks to the start of the journal that has been opened."""
        assert self.journal is not None
        if self.journal.first_step > 0:
            raise input_error(
                str(self.path),
                f"begins at step {self.journal.first_step}, and no checkpoint reaches it",
                None,
                "start anew in another folder",
            )
        to_start(self.journal, blocks)

    def begin(self, method: ZerothOrder, settings: dict[str, Any], resumed_run: str) -> None:
        """Makes the journal ready for the step that is due: checked, or new.

        Args:
            method: The optimizer, at the step where training begins.
            settings: Settings of the run that its steps depend on.
            resumed_run: Name of the run that is gone on with; "" for a new one.

        Raises:
            InputError: The journal is of another run, or steps are missing from it.
        """
        if self.journal is not None:
            self._continue(self.journal, method, settings)
            return
        fields: dict[str, Any] = {"run": resumed_run} if resumed_run else {}
        adapter = method.blocks.space == "adapter"
        header = header_of(
            method,
            start=START if adapter else None,
            fingerprint=fingerprint(method.blocks),
            settings=settings,
            **fields,
        )
        self.run = header.run
        if adapter and (self.writes or how_sharded(method.blocks.model)):
            save_start(method.blocks, self.path.with_name(START))
        if not self.writes:
            return
        self.journal = Journal.create(self.path, header, True, self.sync_steps)

    def _continue(self, journal: Journal, method: ZerothOrder, settings: dict[str, Any]) -> None:
        method.engine.rounding = journal.header.rounding
        journal.header.check(header_of(method, settings=settings), str(self.path))
        if not journal.first_step <= method.steps <= journal.next_step:
            raise input_error(
                str(self.path),
                f"holds steps {journal.first_step} to {journal.next_step - 1}, where step "
                f"{method.steps} is due",
                None,
                "move the journal away to go on from the checkpoint alone",
            )
        self._tail = journal.records(method.steps)

    def due(self, step: int) -> StepRecord | None:
        """Returns the record of a step that was made before the run broke off, else None."""
        while self._tail is not None and (self._next is None or self._next.step < step):
            self._next = next(self._tail, None)
            if self._next is None:
                self._tail = None
        return self._next

    def append(self, record: StepRecord | None) -> None:
        """Writes a step that has been applied; one that is there already is passed over."""
        journal = self.journal
        if journal is None or record is None or not self.writes:
            return
        if len(journal) == 0 or record.step >= journal.next_step:
            journal.append(record)

    def sync(self) -> None:
        """Waits until all steps are on the disk."""
        if self.journal is not None:
            self.journal.sync()

    def close(self) -> None:
        """Closes the journal; `begin` makes it ready again."""
        if self.journal is not None:
            self.journal.close()
        self.journal = self._tail = self._next = None


class RecordingCallback(TrainerCallback):
    """Begins a trainer's recording, and writes each step that has been applied.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: ZOTrainerMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks that all processes and the journal are where training begins.

        Raises:
            InputError: Checkpoint, optimizer and journal are not of one step of one run, or the
                processes of the run are not alike.
        """
        trainer, method = self.trainer, self.trainer.method
        if trainer.resumed is not None and method.steps != state.global_step:
            raise input_error(
                str(trainer.resumed.checkpoint or "resume"),
                f"the checkpoint is at step {state.global_step}, its optimizer at another",
                method.steps,
                "resume from a checkpoint that was saved with save_only_model=False",
            )
        if hasattr(method, "probing"):
            method.probing.steps_planned = state.max_steps
        data, ranks = trainer.train_dataset, trainer.ranks
        check_likeness(ranks, trainer.model, trainer.find_blocks(), data)
        if ranks.several and not compute_alike(ranks, args.device):
            method.agree = lambda scales: ranks.spread(scales).to(scales.device)
        if args.journal:
            recording, rows = trainer.recording, trainer.grid.rows
            stream = getattr(data, "stream", None)
            counted = hasattr(data, "__len__") and stream is None
            examples = len(data) if counted else None
            settings = settings_of(args, method, state.max_steps, examples, recording.journal, rows)
            if stream is not None:
                settings["stream"] = stream.mark
            run = "" if trainer.resumed is None else trainer.resumed.run
            recording.begin(method, settings, run)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the step that has just been applied; now and then compares the weights."""
        trainer, method = self.trainer, self.trainer.method
        trainer.recording.append(method.last_record)
        every = args.fingerprint_steps
        if trainer.ranks.several and every and method.steps % every == 0:
            check_weights(trainer.ranks, method.blocks, f"after step {method.steps}")
