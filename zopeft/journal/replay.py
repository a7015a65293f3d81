"""Rebuilding weights from a journal, without a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zopeft.blocks import Blocks
from zopeft.errors import input_error
from zopeft.journal.header import header_of
from zopeft.journal.journal import Journal
from zopeft.journal.start import fingerprint, load_start
from zopeft.optim.zeroth_order import ZerothOrder

UNMADE = (ValueError, LookupError, RuntimeError, ArithmeticError)
"""What a step of other numbers than a run's may raise."""


def rebuild(journal: str | Path | Journal, optimizer: ZerothOrder, until: int | None = None) -> int:
    """Replays a journal into an optimizer's blocks: the weights are those of the run.

    An optimizer that has made no step begins at the run's start: an adapter gets its
    start weights from beside the journal; full weights must be those of the base model.
    One that has made steps (loaded from a checkpoint) goes on from where it is.

    Args:
        journal: The journal or its path.
        optimizer: A fresh or restored optimizer of the same method, seed and blocks.
        until: Number of steps the run shall then have made; None for all.

    Returns:
        The number of steps the run has made, ``optimizer.steps``.

    Raises:
        InputError: The journal is of another run, does not reach from the optimizer's
            step on or to `until`, or the model is not the one that the run started from.
    """
    if not isinstance(journal, Journal):
        journal = Journal.open(journal)
    where = str(journal.path)
    with begun(where):
        optimizer.engine.rounding = journal.header.rounding
    journal.header.check(header_of(optimizer), where, replays=True)
    goal = journal.next_step if until is None else until
    if optimizer.steps == 0 and journal.first_step == 0:
        to_start(journal, optimizer.blocks)
        if optimizer.auto:
            with begun(where):
                optimizer.begin_rate(journal.header.rate, journal.header.learning_rate)
    if not journal.first_step <= optimizer.steps <= goal <= journal.next_step:
        raise input_error(
            where,
            f"holds steps {journal.first_step} to {journal.next_step - 1}, not "
            f"{optimizer.steps} to {goal - 1}",
            None,
            "load a checkpoint in between, or ask for fewer steps",
        )
    patience, optimizer.bad.most = optimizer.bad.most, len(journal) + 1
    try:
        for record in journal.records(optimizer.steps):
            if record.step >= goal:
                break
            try:
                optimizer.replay(record)
            except UNMADE as error:
                what = str(error).removeprefix("journal: ")
                at = f"step {record.step} cannot be made again"
                raise input_error(where, f"{at} ({what})") from error
    finally:
        optimizer.bad.most = patience
    return int(optimizer.steps)


@contextmanager
def begun(where: str) -> Iterator[None]:
    """Says of a journal that its run cannot begin as it says.

    Args:
        where: The journal's name.

    Raises:
        InputError: In place of what is raised within.
    """
    try:
        yield
    except (TypeError, *UNMADE) as error:
        raise input_error(where, f"its run cannot begin as it says ({error})") from error


def to_start(journal: Journal, blocks: Blocks) -> None:
    """Brings blocks to where a journal starts.

    Args:
        journal: The journal.
        blocks: The blocks, [N]; those of an adapter are written.

    Raises:
        InputError: The start weights are missing or the model is another one.
    """
    if journal.header.start is not None:
        load_start(blocks, journal.path.with_name(journal.header.start))
    found = fingerprint(blocks)
    if journal.header.fingerprint not in ("", found):
        raise input_error(
            str(journal.path),
            f"starts from other weights of {journal.header.base_model or 'the base model'} "
            f"(fingerprint {found} instead of {journal.header.fingerprint})",
            None,
            "load the model that the run started from",
        )
