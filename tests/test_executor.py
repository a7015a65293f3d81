"""The executor: points in, losses out, whoever finds them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from training_run import tiny_model, with_lora

import zopeft
from zopeft.errors import InputError
from zopeft.methods import METHODS
from zopeft.optim.executor import InProcess

IDS = torch.arange(24).reshape(3, 8) % 60 + 2


def made(name, model=None, **options):
    model = tiny_model() if model is None else model
    model.eval()
    options = {"lr": 1e-3, "probes": "separate", **options}
    method = METHODS[name](zopeft.discover(model), **options)
    return method, zopeft.BatchLoss(model, {"input_ids": IDS, "labels": IDS})


def weights(method):
    return [block.parameter.detach().clone() for block in method.blocks]


class Elsewhere(InProcess):
    """Runs each point in another copy of the model, whose weights are written whole."""

    def __init__(self, method):
        super().__init__(method.engine, method.probing)
        self.model = copy.deepcopy(method.blocks.model)
        self.rounds = []

    def losses(self, probes, closure):
        self.rounds.append(len(probes))
        found = []
        for vector, step in probes:
            with self.engine.perturbed(vector, step):
                self.model.load_state_dict(self.engine.blocks.model.state_dict())
            with torch.no_grad():
                found.append(self.model(**closure.batch).loss)
        return torch.stack(found), len(probes)


@pytest.mark.parametrize(
    ("name", "options", "rounds"),
    [
        ("mezo", {"directions": 3}, [6, 6]),
        ("mezo", {"directions": 2, "sides": "one"}, [3, 3]),
        ("dizo", {}, None),
    ],
)
def test_who_finds_the_losses_is_no_matter_to_the_steps(name, options, rounds):
    here, loss = made(name, **options)
    there, other = made(name, **options)
    there.executor = elsewhere = Elsewhere(there)
    for _ in range(2):
        here.step(loss)
        there.step(other)
    assert all(map(torch.equal, weights(here), weights(there)))
    assert here.forward_passes == there.forward_passes
    assert here.last_record.losses == there.last_record.losses
    assert rounds is None or elsewhere.rounds == rounds


def test_an_executor_is_asked_once_for_each_micro_batch():
    here, loss = made("mezo", with_lora(tiny_model()), directions=2)
    here.executor = elsewhere = Elsewhere(here)
    here.estimate(loss)
    here.estimate(loss)
    here.apply()
    assert elsewhere.rounds == [4, 4]


class Wrong(InProcess):
    def __init__(self, method, found):
        super().__init__(method.engine, method.probing)
        self.found = found

    def losses(self, probes, closure):
        return self.found


@pytest.mark.parametrize("found", [None, torch.zeros(2), (torch.zeros(3), 2), ([0.0, 0.0], 2)])
def test_what_is_no_list_of_losses_is_refused(found):
    method, loss = made("mezo")
    before = weights(method)
    method.executor = Wrong(method, found)
    with pytest.raises(InputError, match=r"Wrong.losses: must return 2 losses"):
        method.step(loss)
    assert all(map(torch.equal, before, weights(method)))


def test_losses_that_cannot_be_had_leave_the_step_out():
    method, loss = made("mezo")
    before = weights(method)
    method.executor = Wrong(method, (torch.full((2,), float("nan")), 2))
    method.step(loss)
    assert (method.skipped, method.steps) == (1, 1)
    assert all(map(torch.equal, before, weights(method)))


class Agreeing(InProcess):
    def agreed(self, seen):
        return np.full_like(seen, 0.25)


def test_what_is_seen_beside_the_losses_is_what_the_executor_agrees_on():
    method, loss = made("agzo")
    method.executor = Agreeing(method.engine, method.probing)
    method.step(loss)
    notes = method.last_record.notes
    assert notes and all((note == np.float32(0.25)).all() for note in notes.values())
