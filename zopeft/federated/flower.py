"""Flower (flwr): a strategy whose clients send losses, and the app that answers for a client.

By the message API of flwr 1.42. A server::

    app = flwr.serverapp.ServerApp()

    @app.main()
    def main(grid, context):
        strategy = zopeft.federated.LossStrategy(method, journal="out/journal.bin")
        strategy.start(grid, num_rounds=100)

and a client, whose `make` returns a `Participant`::

    app = zopeft.federated.client_app(make)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error, run_error
from zopeft.federated.asking import Answer, Question
from zopeft.federated.federation import Federation
from zopeft.federated.participant import Participant
from zopeft.optim.zeroth_order import ZerothOrder

try:
    from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import Result, Strategy
except ImportError as error:
    raise input_error(
        "federated", f"needs Flower ({error})", do='pip install "zopeft[federated]"'
    ) from error

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid

KEY = "zopeft"
_HELD: dict[tuple[int, int], Participant] = {}
"""Participants of this process by run and node: a message finds what the one before has left."""


class LossStrategy(Strategy):  # type: ignore[misc]
    """Federated zeroth-order tuning: a round is a step, and clients send its losses.

    Args:
        method: The method over the server's own copy of the model.
        journal: Where the steps are written; None to keep them in memory alone.
        resume: Whether the journal's run is gone on with.
        nodes: Clients that must be there before a step.
        choose: Called with the step and all clients' numbers, returns those that take part;
            None for all.
        check_steps: Steps after which clients' weights are compared with the server's; 0 never.

    Raises:
        InputError: The method looks at more than losses, or the journal is of another run.
    """

    def __init__(
        self,
        method: ZerothOrder,
        journal: str | Path | None = None,
        resume: bool = False,
        nodes: int = 2,
        choose: Callable[[int, Sequence[int]], Sequence[int]] | None = None,
        check_steps: int = 100,
    ) -> None:
        self.federation = Federation(method, self._ask, journal, resume, check_steps)
        self.nodes, self.choose = nodes, choose
        self._grid: Any = None
        self._timeout = 3600.0
        self._questions: Mapping[int, Question] = {}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Makes steps.

        Args:
            grid: Flower's.
            initial_arrays: Not used: no weights are sent.
            num_rounds: Steps.
            timeout: Seconds that an answer may take, and that clients may take to appear.
            train_config: Not used.
            evaluate_config: Not used.
            evaluate_fn: Not used.

        Returns:
            Flower's result, with each step's loss; its arrays are empty.

        Raises:
            RunError: Too few clients appear, or none answers.
        """
        self._grid, self._timeout = grid, float(timeout)
        result = Result()
        try:
            for number in range(1, num_rounds + 1):
                record = self.federation.step(self._clients())
                told = MetricRecord({"loss": float(record.loss), "step": int(record.step)})
                result.train_metrics_clientapp[number] = told
        finally:
            self.federation.close()
        return result

    def _clients(self) -> list[int]:
        end = time.monotonic() + self._timeout
        while len(found := sorted(self._grid.get_node_ids())) < self.nodes:
            if time.monotonic() > end:
                what = f"{self.nodes} clients are needed"
                raise run_error("federated", what, f"{len(found)} after {self._timeout:g} s")
            time.sleep(0.5)
        step = int(self.federation.method.steps)
        return found if self.choose is None else list(self.choose(step, found))

    def _ask(self, questions: Mapping[int, Question]) -> dict[int, Answer]:
        self._questions = questions
        number = int(self.federation.method.steps) + 1
        messages = self.configure_train(number, None, None, self._grid)
        replies = self._grid.send_and_receive(messages, timeout=self._timeout)
        return {
            int(reply.metadata.src_node_id): _answer_of(reply)
            for reply in replies
            if not reply.has_error()
        }

    def configure_train(
        self, server_round: int, arrays: Any, config: Any, grid: Grid
    ) -> Iterable[Message]:
        """Returns a message to each client that is asked: the steps it lacks, and no weights."""
        return [
            Message(
                RecordDict({KEY: ConfigRecord(_sent(question.to_dict()))}),
                dst_node_id=client,
                message_type=MessageType.TRAIN,
                group_id=str(server_round),
            )
            for client, question in self._questions.items()
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord]:
        """Returns no weights, and how many clients have answered with losses."""
        found = [_answer_of(reply) for reply in replies if not reply.has_error()]
        return None, MetricRecord({"answers": sum(bool(answer.losses) for answer in found)})

    def configure_evaluate(
        self, server_round: int, arrays: Any, config: Any, grid: Grid
    ) -> Iterable[Message]:
        """Returns nothing: the losses of the steps are all that clients are asked for."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Returns nothing, see `configure_evaluate`."""

    def summary(self) -> None:
        """Says nothing."""


def client_app(make: Callable[[Context], Participant]) -> ClientApp:
    """Returns the app of a client.

    Args:
        make: Called with Flower's context once a process and run, returns the client's
            `Participant`; a new process makes its steps again from the server's journal.

    Returns:
        A ``flwr.clientapp.ClientApp``.
    """
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        key = (int(context.run_id), int(context.node_id))
        if key not in _HELD:
            _HELD[key] = make(context)
        answer = _HELD[key].message(dict(message.content.config_records[KEY]))
        content = RecordDict({KEY: ConfigRecord(_sent(answer))})
        return Message(content, reply_to=message)

    return app


def _answer_of(reply: Message) -> Answer:
    return Answer.from_dict(dict(reply.content.config_records[KEY]))


def _sent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what Flower's records cannot tell the type of: lists without entries."""
    return {name: value for name, value in values.items() if value != []}
