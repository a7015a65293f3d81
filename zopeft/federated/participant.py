"""A client: it makes the steps that it is sent, and looks at the next one on its own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.engine.direction import Probe
from zopeft.errors import ZopeftError, input_error
from zopeft.federated.asking import Answer, Question, unpacked
from zopeft.journal.header import JournalHeader, header_of
from zopeft.journal.replay import UNMADE, begun
from zopeft.journal.start import fingerprint
from zopeft.optim.executor import InProcess
from zopeft.optim.zeroth_order import ZerothOrder
from zopeft.probing.closure import Closure

WHERE = "the server's journal"


class _SeenError(Exception):
    """A round's losses, which stop the plan: who made the step decides how it goes on.

    Args:
        losses: fp32 [P].
    """

    def __init__(self, losses: Tensor) -> None:
        super().__init__("a round has been seen")
        self.losses = losses


class _Rounds(InProcess):
    """Gives a plan the losses of rounds that are over, and looks at the next one.

    Args:
        method: The method.
        asked: The losses of the rounds that are over, one behind the other.
    """

    def __init__(self, method: ZerothOrder, asked: Sequence[float]) -> None:
        super().__init__(method.engine, method.probing)
        self.left = list(asked)

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `zopeft.optim.executor.Executor.losses`."""
        if self.left:
            own, self.left = self.left[: len(probes)], self.left[len(probes) :]
            if len(own) < len(probes):
                raise input_error(WHERE, f"has {len(own)} losses of {len(probes)} points")
            return torch.tensor(own, dtype=torch.float64), 0
        raise _SeenError(super().losses(probes, closure)[0])


class Participant:
    """One client of a federated run.

    Args:
        method: The method over its own model, at its first step; made as the server's is, from
            the same base model and, for an adapter, the same seed.
        batch: Called with a step's number, returns the closure of this client's batch, such as
            a `zopeft.BatchLoss`; it must be the same for the same step.
        rows: Called with that closure, returns its weight; None counts the batch's rows.
    """

    def __init__(
        self,
        method: ZerothOrder,
        batch: Callable[[int], Closure],
        rows: Callable[[Closure], int] | None = None,
    ) -> None:
        self.method, self.batch = method, batch
        self.rows = rows_of if rows is None else rows
        self.header: JournalHeader | None = None
        self.forward_passes = 0

    def answer(self, question: Question) -> Answer:
        """Makes the steps that it lacks, looks at the one that is due, and says what it has seen.

        Args:
            question: What the server asks.

        Returns:
            The losses; or how far it is, where steps are missing; or what is wrong.
        """
        try:
            return self._answer(question)
        except ZopeftError as error:
            return Answer(self._made, problem=str(error))

    def message(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Answers a message: a question's values by name, for the answer's."""
        try:
            question = Question.from_dict(values)
        except ZopeftError as error:
            return Answer(self._made, problem=str(error)).to_dict()
        return self.answer(question).to_dict()

    @property
    def _made(self) -> int:
        return -1 if self.header is None else int(self.method.steps)

    def _answer(self, question: Question) -> Answer:
        if self.header is None and question.header:
            self._begin(question.header)
        method = self.method
        if self.header is None or method.steps < question.first:
            return Answer(self._made)
        self._make(question.records)
        if method.steps != question.step:
            if method.steps > question.step:
                do = "have the server go on from its journal (resume=True)"
                what = f"is at step {question.step}, and this client has made more"
                raise input_error(WHERE, what, method.steps, do)
            return Answer(self._made)
        closure = self.batch(question.step)
        losses = self._look(question.asked, closure)
        mark = fingerprint(method.blocks) if question.checks else ""
        return Answer(self._made, losses, self.rows(closure), mark)

    def _make(self, payloads: Sequence[bytes]) -> None:
        """Makes the steps that it lacks.

        Raises:
            InputError: One cannot be read, or is not a step of this method.
        """
        method = self.method
        try:
            for record in unpacked(payloads):
                if record.step == method.steps:
                    method.replay(record)
        except UNMADE as error:
            what = str(error).removeprefix("journal: ")
            at = f"step {method.steps} cannot be made again"
            raise input_error(WHERE, f"{at} ({what})") from error

    def _begin(self, payload: bytes) -> None:
        """Compares the run with this client's method and weights.

        Raises:
            InputError: They are of another run, or of another start.
        """
        method = self.method
        header = JournalHeader.from_bytes(payload, WHERE)
        with begun(WHERE):
            method.engine.rounding = header.rounding
            if method.auto:
                method.begin_rate(header.rate, header.learning_rate)
        header.check(header_of(method), WHERE, replays=True)
        found = fingerprint(method.blocks)
        if header.fingerprint not in ("", found):
            do = "load the same model, and make the adapter from the same seed"
            what = f"begins with other weights ({header.fingerprint}) than this client"
            raise input_error(WHERE, what, found, do)
        self.header = header

    def _look(self, asked: Sequence[float], closure: Closure) -> list[float]:
        """Returns the losses of the step's next round; the step itself stays due."""
        method = self.method
        usual, before = method.executor, method.forward_passes
        method.executor = _Rounds(method, asked)
        try:
            method.estimate(closure)
            method.apply()
        except _SeenError as seen:
            self.forward_passes += len(seen.losses)
            return [float(loss) for loss in seen.losses]
        finally:
            method.leave()
            method.executor, method.forward_passes = usual, before
        raise input_error(WHERE, "asks for more of a step than it has", method.steps)


def rows_of(closure: Closure) -> int:
    """Returns the rows of a closure's batch; one where it does not say."""
    batch: Any = getattr(closure, "batch", None) or {}
    ids = batch.get("input_ids")
    return int(ids.shape[0]) if isinstance(ids, Tensor) else 1
