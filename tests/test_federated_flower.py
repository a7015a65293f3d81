"""Flower's messages carry a federated run; its own services are not started here."""

from __future__ import annotations

import inspect

import pytest

flwr = pytest.importorskip(
    "flwr", reason='Flower is not installed: pip install "zopeft[federated]"'
)

from flwr.app import Context, Error, Message, RecordDict  # noqa: E402
from test_federated import made, participant, same  # noqa: E402

from zopeft.errors import RunError  # noqa: E402
from zopeft.federated import LossStrategy, client_app  # noqa: E402
from zopeft.federated import flower as glue  # noqa: E402


class Grid:
    """Clients of this process behind Flower's messages; some may be down."""

    def __init__(self, app, run):
        from flwr.supercore.task_identity import TaskIdentity

        self.app, self.run = app, run
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
        self.down, self.sent = set(), []

    def get_node_ids(self):
        return [22, 11]

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            node = message.metadata.dst_node_id
            # As they come out of the wire: with a number and a sender.
            message.metadata._src_node_id, message.metadata._run_id = 1, self.run
            message.metadata._message_id = f"message-{len(self.sent)}"
            self.sent.append((node, message.content))
            if node in self.down:
                yield Message(Error(code=0, reason="down"), reply_to=message)
                continue
            settings = {"partition-id": 0 if node == 11 else 1}
            context = Context(self.run, node, settings, RecordDict(), {})
            yield self.app(message, context)


def test_a_run_by_flowers_messages_is_that_of_the_core():
    made_for = []

    def make(context):
        made_for.append(context.node_id)
        return participant(int(context.node_config["partition-id"]))

    grid, server = Grid(client_app(make), 5), made()
    strategy = LossStrategy(server, choose=lambda step, all_: all_ if step else all_[:1])
    result = strategy.start(grid, num_rounds=4)
    assert sorted(made_for) == [11, 22]
    assert [found["step"] for found in result.train_metrics_clientapp.values()] == [0, 1, 2, 3]
    # No arrays went either way, and the second client was sent what it had missed.
    assert all(not content.array_records for _, content in grid.sent)
    records = {node: content.config_records["zopeft"] for node, content in grid.sent[:3]}
    assert len(records[22]["records"]) == 1
    for key in ((5, 11), (5, 22)):
        held = glue._HELD.pop(key)
        held.method.replay(strategy.federation.records[3])
        assert same(held.method, server)


def test_clients_that_are_down_are_passed_over():
    grid = Grid(client_app(lambda context: participant(0)), 6)
    strategy = LossStrategy(made())
    grid.down = {22}
    strategy.start(grid, num_rounds=1)
    grid.down = {11, 22}
    with pytest.raises(RunError, match="no client answers at step 1"):
        strategy.start(grid, num_rounds=1)
    few = LossStrategy(made(), nodes=3)
    with pytest.raises(RunError, match=r"3 clients are needed, got '2 after 0\.1 s'"):
        few.start(grid, num_rounds=1, timeout=0.1)


def test_the_strategy_is_started_as_flowers_own_are():
    from flwr.serverapp.strategy import Strategy

    own, theirs = (inspect.signature(kind.start).parameters for kind in (LossStrategy, Strategy))
    assert list(own) == list(theirs)
