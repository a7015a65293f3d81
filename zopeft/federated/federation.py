"""The server of a federated run: it asks for losses, makes the steps, and keeps the journal."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zopeft.engine.direction import Probe
from zopeft.errors import input_error, run_error
from zopeft.federated.asking import Answer, Question, packed
from zopeft.journal.header import JournalHeader, header_of
from zopeft.journal.journal import Journal
from zopeft.journal.replay import rebuild
from zopeft.journal.start import fingerprint
from zopeft.optim.looks import is_point
from zopeft.optim.record import StepRecord
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.closure import Closure

logger = logging.getLogger(__name__)

Ask = Callable[[Mapping[int, Question]], Mapping[int, Answer]]
"""Sends each client, by its number, a question; returns the answers of those that gave one."""


class Federation:
    """A run whose losses come from clients.

    It is the executor of its method: a step's plan runs here, and each of its rounds is asked of
    the clients, whose losses are averaged by their rows.

    Args:
        method: The method over the server's own copy of the model; no forward pass is made.
        ask: Sends questions and returns answers.
        journal: Where the steps are written; None to keep them in memory alone.
        resume: Whether the journal's run is gone on with.
        check_steps: Steps after which clients' weights are compared with the server's; 0 never.
        settings: What else is told of the run in its journal.

    Raises:
        InputError: The method looks at more than losses, or the journal is of another run.
    """

    def __init__(
        self,
        method: ZerothOrder,
        ask: Ask,
        journal: str | Path | None = None,
        resume: bool = False,
        check_steps: int = 100,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.method, self.ask, self.check_steps = method, ask, check_steps
        self.clients: list[int] = []
        self.places: dict[int, int] = {}
        self.records: list[StepRecord] = []
        self._asked: list[float] = []
        self._check()
        # What of a difference is rounding is for those to measure who have data.
        method.probing.look_for_noise = lambda *_: 0  # type: ignore[method-assign]
        method.executor = self
        if method.auto:
            method.settle(_nowhere)
        path = None if journal is None else Path(journal)
        self.journal: Journal | None = None
        self.header = self._header(dict(settings or {}))
        if path is not None and path.exists():
            if not resume:
                do = "give resume=True, or another place"
                raise input_error("journal", "there is one of a run already", str(path), do)
            self.journal = Journal.open(path, True)
            rebuild(self.journal, method)
            self.header = self.journal.header
            self.records = list(self.journal.records())
        elif path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.journal = Journal.create(path, self.header)

    def _check(self) -> None:
        method = self.method
        looks = method.selection.looks or method.budget.measured
        if method.differentiates or method.groups or looks:
            name = type(self.method).__name__
            do = "choose a method whose steps depend on losses alone, such as mezo"
            raise input_error("federated", "clients send losses alone", name, do)

    def _header(self, settings: dict[str, Any]) -> JournalHeader:
        mark = fingerprint(self.method.blocks)
        return header_of(self.method, fingerprint=mark, settings={"federated": True, **settings})

    def step(self, clients: Sequence[int]) -> StepRecord:
        """Makes one step.

        Args:
            clients: The numbers of those that are asked.

        Returns:
            Its record.

        Raises:
            RunError: None of them answers, or the loss has not been finite for too many steps.
        """
        self.clients, self._asked = sorted(clients), []
        self.method.step(_nowhere)
        record = self.method.last_record
        assert record is not None
        self.records.append(record)
        if self.journal is not None:
            self.journal.append(record)
        return record

    def close(self) -> None:
        """Closes the journal."""
        if self.journal is not None:
            self.journal.close()

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `zopeft.optim.executor.Executor.losses`: asks the clients.

        Raises:
            InputError: A probe is more than a point.
            RunError: No client answers.
        """
        for probe in probes:
            if not is_point(probe):
                name = type(self.method).__name__
                raise input_error("federated", "clients send losses alone", name)
        answers = self._answers(len(probes))
        rows = [answers[client].rows for client in sorted(answers)]
        each = [answers[client].losses for client in sorted(answers)]
        total = sum(rows)
        means = [
            sum(n * own[place] for n, own in zip(rows, each, strict=True)) / total
            for place in range(len(probes))
        ]
        found = torch.tensor(means, dtype=torch.float32)
        self._asked += found.tolist()
        return found, 0

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """See `zopeft.optim.executor.Executor.agreed`: what the server has seen."""
        return seen

    def _answers(self, count: int) -> dict[int, Answer]:
        """Returns the answers that count: those with losses for all points."""
        step = int(self.method.steps)
        checks = self.check_steps > 0 and step > 0 and step % self.check_steps == 0
        good: dict[int, Answer] = {}
        waiting = list(self.clients)
        # One that has started anew says how far it is, and is then sent what it lacks.
        for _ in range(3):
            if not waiting:
                break
            questions = {client: self._question(client, step, checks) for client in waiting}
            found, waiting = self.ask(questions), []
            for client, answer in sorted(found.items()):
                self.places[client] = answer.step
                if answer.problem:
                    logger.warning("client %d: %s", client, answer.problem)
                elif answer.step != step:
                    waiting.append(client)
                elif self._counts(client, answer, count, checks):
                    good[client] = answer
        if not good:
            asked = f"{len(self.clients)} asked"
            do = "see the clients' logs; the journal holds all steps before"
            raise run_error("federated", f"no client answers at step {step}", asked, do)
        return good

    def _question(self, client: int, step: int, checks: bool) -> Question:
        place = self.places.get(client, -1)
        header = self.header.to_bytes() if place < 0 else b""
        # One that has never answered is new, or has missed a message: it says.
        first = max(place, 0)
        own = packed(self.records[first:step])
        return Question(step, header, first, own, list(self._asked), checks)

    def _counts(self, client: int, answer: Answer, count: int, checks: bool) -> bool:
        """Whether an answer is taken, after a word on why not."""
        if len(answer.losses) != count or not all(map(math.isfinite, answer.losses)):
            logger.warning("client %d: left out, its losses are %s", client, answer.losses)
            return False
        if answer.rows < 1:
            logger.warning("client %d: left out, its batch is empty", client)
            return False
        if checks and answer.fingerprint != fingerprint(self.method.blocks):
            logger.warning("client %d: left out, its weights are others", client)
            return False
        return True


def _nowhere() -> Tensor:
    """Stands in for the loss of a batch, which the server does not have."""
    raise run_error("federated", "the server has no data to look at")
