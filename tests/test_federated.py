"""Federated tuning without a network: clients send losses, and have the server's weights."""

from __future__ import annotations

import pytest
import torch
from training_run import tiny_model, with_lora

import zopeft
from zopeft.errors import InputError, RunError
from zopeft.federated import Answer, Federation, Participant, Question
from zopeft.journal import rebuild
from zopeft.methods import METHODS
from zopeft.optim import turns

ROWS = (torch.arange(60).unsqueeze(1) * 7 + torch.arange(8)) % 60 + 2


def made(name="mezo", seed=1, **options):
    model = with_lora(tiny_model(), seed=seed).eval()
    options = {"lr": 1e-2, "directions": 2, "probes": "separate", **options}
    return METHODS[name](zopeft.discover(model), **options)


def batches(method, part, rows):
    """Batches of one client's own rows."""

    def batch(step):
        first = (5 * step) % 20
        own = ROWS[part::2][first : first + rows]
        return zopeft.BatchLoss(method.blocks.model, {"input_ids": own, "labels": own})

    return batch


class Network:
    """Clients of this process, by number; what they are sent is counted."""

    def __init__(self, *participants):
        self.participants = dict(enumerate(participants))
        self.away = set()
        self.sent, self.received = [], []

    def __call__(self, questions):
        found = {}
        for client, question in questions.items():
            if client in self.away:
                continue
            self.sent.append((client, question))
            asked = Question.from_dict({n: v for n, v in question.to_dict().items() if v != []})
            answer = self.participants[client].answer(asked)
            self.received.append(answer)
            found[client] = Answer.from_dict(answer.to_dict())
        return found


def participant(part, name="mezo", rows=3, **options):
    method = made(name, **options)
    return Participant(method, batches(method, part, rows))


def weights(method):
    return [block.data.clone() for block in method.blocks]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mezo", {}),
        ("mezo", {"lr": "auto"}),
        ("mezo_adam", {}),
        ("lozo_m", {"directions": 1}),
        ("fzoo", {"directions": 1}),
        # Plans that ask again once they have losses.
        ("dizo", {"directions": 1, "every": 2, "rounds": 2}),
        ("conmezo", {"directions": 1}),
    ],
)
def test_clients_have_the_servers_weights_and_send_losses_alone(name, options):
    network = Network(participant(0, name, **options), participant(1, name, rows=2, **options))
    server = made(name, **options)
    start = weights(server)
    federation = Federation(server, network)
    for _ in range(5):
        federation.step([0, 1])
    assert any(not torch.equal(a, b) for a, b in zip(start, weights(server), strict=True))
    # A last question brings the clients to where the server is.
    federation.step([0, 1])
    for client in network.participants.values():
        assert client.method.steps == 5
        client.method.replay(federation.records[5])
        assert same(client.method, server)
    assert all(len(question.records) <= 1 for _, question in network.sent)
    each = [len(answer.losses) for answer in network.received]
    assert sum(each) == sum(p.forward_passes for p in network.participants.values())


def test_first_steps_take_turns_on_all_sides(monkeypatch):
    monkeypatch.setattr(turns, "MOST", 8)

    def whole():
        options = {"lr": "auto", "budget": "turns", "directions": 2, "probes": "separate"}
        return METHODS["mezo"](zopeft.discover(tiny_model().eval()), **options)

    clients = [whole(), whole()]
    server = whole()
    start = weights(server)
    own = [Participant(one, batches(one, n, 3)) for n, one in enumerate(clients)]
    federation = Federation(server, Network(*own))
    for _ in range(11):
        federation.step([0, 1])
    assert server.budget.factors is not None and server.budget.turns.taken == 8
    assert not all(torch.equal(a, b) for a, b in zip(start, weights(server), strict=True))
    for one in clients:
        one.replay(federation.records[10])
        assert same(one, server)


def test_the_step_is_that_of_one_process_with_all_rows():
    network = Network(participant(0, rows=3), participant(1, rows=2))
    server, alone = made(), made()
    federation = Federation(server, network)
    for step in range(3):
        federation.step([0, 1])
        parts = [batches(alone, part, rows)(step) for part, rows in ((0, 3), (1, 2))]
        own = torch.cat([part.batch["input_ids"] for part in parts])
        alone.step(zopeft.BatchLoss(alone.blocks.model, {"input_ids": own, "labels": own}))
        here, there = federation.records[step].losses, alone.last_record.losses
        assert here == pytest.approx(there, abs=2e-6)


def test_one_that_joins_late_makes_the_steps_again_without_a_forward_pass():
    late = participant(1)
    network = Network(participant(0), late)
    server = made()
    federation = Federation(server, network)
    for _ in range(4):
        federation.step([0])
    federation.step([0, 1])
    (question,) = [q for client, q in network.sent if client == 1][-1:]
    assert question.first == 0 and len(question.records) == 4
    assert late.method.steps == 4
    assert late.forward_passes == 4
    # One whose process has started anew says so, and is sent all of it once more.
    network.participants[0] = participant(0)
    federation.step([0, 1])
    assert network.participants[0].method.steps == 5
    for client in network.participants.values():
        client.method.replay(federation.records[5])
        assert same(client.method, server)


def test_a_client_that_is_away_or_wrong_is_left_out_and_told(caplog):
    other = participant(1, seed=2)
    network = Network(participant(0), other, participant(1), participant(1))
    network.participants[3].batch = lambda step: lambda: torch.tensor(float("nan"))
    federation = Federation(made(), network, check_steps=1)
    network.away = {2}
    federation.step([0, 1, 2, 3])
    assert "client 1: the server's journal: begins with other weights" in caplog.text
    assert "client 3: left out, its losses are" in caplog.text
    network.away = set()
    federation.step([0, 2])
    with torch.no_grad():
        network.participants[2].method.blocks[0].data.add_(1.0)
    federation.step([0, 2])
    assert "client 2: left out, its weights are others" in caplog.text
    network.away = {0, 2}
    with pytest.raises(RunError, match=r"no client answers at step 3, got '?2 asked"):
        federation.step([0, 2])


def test_a_server_goes_on_from_its_journal_and_anybody_can_rebuild_it(tmp_path):
    journal = tmp_path / "run" / "journal.bin"
    network = Network(participant(0), participant(1))
    whole = Federation(made(), Network(participant(0), participant(1)))
    first = Federation(made(), network, journal)
    for _ in range(3):
        first.step([0, 1])
        whole.step([0, 1])
    first.close()
    with pytest.raises(InputError, match=r"there is one of a run already.*resume=True"):
        Federation(made(), network, journal)
    again = Federation(made(), network, journal, resume=True)
    again.step([0, 1])
    whole.step([0, 1])
    again.close()
    assert same(again.method, whole.method)
    other = made()
    assert rebuild(journal, other) == 4
    assert same(other, whole.method)


@pytest.mark.parametrize("name", ["forward_gradient", "grzo"])
def test_methods_that_look_at_more_than_losses_are_refused(name):
    with pytest.raises(InputError, match="clients send losses alone"):
        Federation(made(name, directions=1), Network())


def test_a_client_of_another_run_says_so():
    network = Network(participant(0, directions=1))
    federation = Federation(made(), network)
    with pytest.raises(RunError, match="no client answers"):
        federation.step([0])
    (answer,) = network.received
    assert "directions" in answer.problem and answer.losses == []


def test_flower_is_asked_for_by_name():
    try:
        import flwr  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"needs Flower .*zopeft\[federated\]"):
            _ = zopeft.federated.LossStrategy
    else:
        assert zopeft.federated.LossStrategy.__name__ == "LossStrategy"
