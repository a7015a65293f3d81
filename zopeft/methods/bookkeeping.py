"""What a step leaves behind: its record, the running measures, the count of bad steps."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from zopeft.engine.reads import unread_line
from zopeft.errors import run_error
from zopeft.methods.pending import Pending
from zopeft.methods.record import StepRecord, packed
from zopeft.methods.restorable import Restorable

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

    def _record(self, pending: Pending) -> StepRecord:
        """Returns the record of a step whose losses are complete."""
        estimator, losses, centre = self.estimator, pending.losses(), pending.centre()
        raw = self._differences(losses, centre, pending.eps)
        grads = (0.0,) * estimator.directions
        if raw is not None:
            spread = estimator.spread(raw)
            grads = estimator.projected([self.clip.clipped(grad) for grad in raw], spread)
        rates = [float(group["lr"]) for group in self.param_groups]
        scales, memory = pending.direction.scales, self._memory()
        return StepRecord(
            step=self.steps,
            seed=pending.direction.seed,
            losses=losses,
            projected_grads=grads,
            lr=(rates[0],) if len(set(rates)) == 1 else tuple(rates),
            eps=pending.eps,
            decay=self.weight_decay,
            scales=None if scales is None else scales.detach().float().cpu().numpy(),
            memory=None if memory is None else memory.detach().float().cpu().numpy(),
            skipped=raw is None,
            centre=centre,
            mirror=pending.mirror(),
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

    def _close(self, record: StepRecord) -> None:
        """Closes a step that has been applied."""
        self.last_record = record
        self.steps += 1
        for grad in self.estimator.differences(record.losses, record.centre, record.eps):
            self.clip.note(grad)
        if self.rate is not None:
            self.rate.note(record)
        self._finish(record)
