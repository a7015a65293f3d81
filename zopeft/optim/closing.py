"""The end of a step: its record and its writes, of losses or of what a journal holds."""

from __future__ import annotations

from collections.abc import Sequence

from zopeft.errors import input_error
from zopeft.optim.recalled import OWN
from zopeft.optim.record import StepRecord, record_of
from zopeft.optim.rounds import Rounds
from zopeft.optim.writes import Write


def closed(rounds: Rounds) -> tuple[StepRecord, Sequence[Write] | None]:
    """Runs what is left of a step's plan.

    Returns:
        The step's record, and what to write; None where a loss was not finite.

    Raises:
        InputError: The record of a recalled step is not one that this method's plan has left.
    """
    method, record = rounds.step.method, rounds.step.record
    if record is not None:
        return record, None if record.skipped else _repeated(rounds, record)
    writes = rounds.finish()
    rates = [float(group["lr"]) for group in method.param_groups]
    missed, memory = method.engine.reads.missed(), method._memory()
    return record_of(rounds, rates, method.weight_decay, memory, missed, writes is None), writes


def _repeated(rounds: Rounds, record: StepRecord) -> Sequence[Write]:
    try:
        return rounds.feed(record.all_losses())
    except (ValueError, KeyError, IndexError) as error:
        raise input_error(
            "journal", f"step {record.step} is not of this method", str(error), OWN
        ) from None
