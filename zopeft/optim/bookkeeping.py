"""What a step leaves behind: its record, the running measures, the count of bad steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zopeft.engine.reads import unread_line
from zopeft.errors import input_error, run_error
from zopeft.optim.record import StepRecord, packed
from zopeft.optim.restorable import Restorable
from zopeft.optim.rounds import Rounds
from zopeft.optim.step import Step
from zopeft.optim.writes import Write

OWN = "use the journal of this run"

logger = logging.getLogger(__name__)


class Bookkeeping(Restorable):
    """What `ZerothOrder` does about a step's record, before and after the weights are written."""

    param_groups: list[dict[str, Any]]
    max_bad_steps: int
    last_record: StepRecord | None
    unread: str

    def _memory(self) -> Tensor | None:
        """Returns what the journal must hold of the method's own state for this step."""
        return None

    def _finish(self, record: StepRecord) -> None:
        """Takes note of a step that has been applied (or replayed)."""

    def _record(self, rounds: Rounds, skipped: bool) -> StepRecord:
        """Returns the record of a step whose losses are complete, or not finite."""
        step, taken, asked = rounds.step, rounds.step.taken, tuple(rounds.asked)
        rates = [float(group["lr"]) for group in self.param_groups]
        scales, memory = step.scales, self._memory()
        last = taken.first + taken.count if taken.count else len(asked)
        plain = len(asked) == last + taken.mirrored
        grads = taken.gradients or (0.0,) * self.estimator.directions
        return StepRecord(
            step=self.steps,
            seed=step.seed,
            losses=asked[taken.first : last],
            projected_grads=grads,
            lr=(rates[0],) if len(set(rates)) == 1 else tuple(rates),
            eps=step.eps,
            decay=self.weight_decay,
            scales=None if scales is None else scales.detach().float().cpu().numpy(),
            memory=None if memory is None else memory.detach().float().cpu().numpy(),
            skipped=skipped,
            centre=asked[taken.first - 1] if taken.first else None,
            mirror=asked[last] if taken.mirrored else None,
            asked=() if plain else asked,
            first=taken.first,
            notes=step.notes or None,
            unread=packed(self.engine.reads.missed()),
        )

    def _settle(self, record: StepRecord) -> None:
        """Takes note, in the first step, of the blocks that it has not read."""
        reads = self.engine.reads
        if reads.watched is not None or record.unread is None:
            return
        missed = record.left_alone
        reads.settle(missed)
        if missed:
            self.unread = unread_line(self.blocks, missed)
            logger.warning("%s", self.unread)

    def _repeat(self, rounds: Rounds, record: StepRecord) -> Sequence[Write]:
        """Returns the writes of a recorded step.

        Raises:
            InputError: The record is not one that this method's plan has left.
        """
        try:
            writes = rounds.feed(record.all_losses())
        except (ValueError, KeyError, IndexError) as error:
            raise input_error(
                "journal", f"step {record.step} is not of this method", str(error), OWN
            ) from None
        return writes

    def _skip(self, record: StepRecord) -> None:
        """Closes a step whose loss was not finite.

        Raises:
            RunError: It is one too many in a row.
        """
        self.skipped += 1
        self._bad_in_a_row += 1
        self.last_record = record
        self.steps += 1
        if self.rate is not None:
            self.rate.note(record)
        if self._bad_in_a_row >= self.max_bad_steps:
            raise run_error(
                "loss",
                f"not finite for {self._bad_in_a_row} steps in a row",
                record.losses[0],
                "lower --lr or --eps, or use a wider --dtype; the last good weights are kept",
            )

    def _close(self, record: StepRecord, step: Step) -> None:
        """Closes a step that has been applied."""
        self.last_record = record
        self.steps += 1
        for gradient in step.taken.raw:
            self.clip.note(gradient)
        if self.rate is not None:
            self.rate.note(record)
        self._finish(record)
