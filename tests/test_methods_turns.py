"""Turns: first steps that serve one sort of blocks each, and what runs keep of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_methods import WAYS, equal, weights
from test_methods_budget import CURVES, SLOPES, Known, make, power
from test_methods_selection import BATCH, tiny

import zopeft
from zopeft.errors import InputError
from zopeft.journal.codec import decode, encode
from zopeft.journal.header import header_of
from zopeft.optim import turns
from zopeft.optim.budget import NOTE
from zopeft.optim.turns import Tally, turns_of


def turning(name, model, **options):
    return make(name, model, **{"budget": "turns", **options})


def served(method, record):
    """Returns the sorts that a step has moved."""
    scales = np.ones(len(method.blocks)) if record.scales is None else record.scales
    return {method.budget.names[n] for n in np.flatnonzero(scales)}


def test_first_steps_take_turns_and_all_have_the_whole_budget():
    model = tiny()
    method = turning("mezo", model)
    total = float(sum(method.blocks.numels))
    for number in range(52):
        method.step(zopeft.BatchLoss(model, BATCH))
        record = method.last_record
        want = [{"rest"}, {"vocabulary"}][number % 2] if number < 48 else {"rest", "vocabulary"}
        assert served(method, record) == want, number
        assert float(power(method, record.scales).sum()) == pytest.approx(total, rel=1e-5)
    assert NOTE in record.notes and method.budget.turns.taken == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_turn_writes_its_own_sort_and_no_bit_of_the_other(dtype):
    model = tiny().to(dtype)
    method = turning("mezo", model)
    numbers = range(len(method.blocks))
    start = [method.engine.weights(n).clone() for n in numbers]
    method.step(zopeft.BatchLoss(model, BATCH))
    moved = {
        method.budget.names[n]
        for n in numbers
        if not torch.equal(method.engine.weights(n), start[n])
    }
    assert moved == {"rest"}


def test_slope_and_curvature_of_a_known_loss_are_seen_on_the_way(monkeypatch):
    monkeypatch.setattr(turns, "MOST", 2000)
    monkeypatch.setattr(turns, "LOOKS", 10.0)
    method = turning("mezo", Known(), lr=1e-9)
    method.probing.steps_planned = 10_000
    while not method.budget.turns.over(10_000):
        method.step(method.blocks.model.loss)
    whole = 7 * 4 + 6 * 10
    for name, slope, curve in zip(("vocabulary", "rest"), SLOPES, CURVES, strict=True):
        tally = method.budget.turns.tallies[name]
        assert len(tally.squares) == 1000
        assert tally.energy == pytest.approx(whole * slope**2, rel=0.2)
        assert tally.curvature == pytest.approx(whole * curve, rel=0.1)
    method.step(method.blocks.model.loss)
    used = power(method, method.last_record.scales)
    names = [block.role for block in method.blocks]
    # By turns, E over h counts once, and the square root of what the scales give.
    parts = {
        name: math.sqrt(given) * tally.energy / tally.curvature
        for (name, tally), given in zip(
            method.budget.turns.tallies.items(), (60 / whole, 28 / whole), strict=True
        )
    }
    share = parts["vocabulary"] / sum(parts.values())
    assert float(used[names.index("embed")] / used.sum()) == pytest.approx(share, rel=1e-3)
    assert 0.9 < share < 0.99
    assert method.forward_passes > 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", ["auto", 1e-3])
@pytest.mark.parametrize("name", ["mezo", "zo_finetuner"])
def test_replay_and_resume_keep_every_bit(name, lr, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "MOST", 8)
    model = tiny().to(dtype)
    method, start, states, records = turning(name, model, lr=lr), weights(model), [], []
    closure, before = zopeft.BatchLoss(model, BATCH), None
    kept = (0, 1, 5, 8, 9)
    for number in range(11):
        if number in kept:
            torch.save((method.state_dict(), model.state_dict()), tmp_path / "state")
            states.append((number, *torch.load(tmp_path / "state", weights_only=True)))
        method.step(closure)
        before = decode(encode(method.last_record, before), before)
        records.append(before)
    ended = weights(model)
    assert not equal(ended, start) and method.budget.factors is not None
    method.step(closure)
    again = weights(model)
    # From its records: whole, and from the middle of the turns on.
    for recorded in (11, 5, 8):
        twin = tiny().to(dtype)
        replayed = turning(name, twin, lr=lr)
        if lr == "auto":
            header = header_of(method)
            replayed.begin_rate(header.rate, header.learning_rate)
        for record in records[:recorded]:
            replayed.replay(record)
        assert replayed.forward_passes == 0
        if recorded == 11:
            assert equal(weights(twin), ended)
        for _ in range(12 - recorded):
            replayed.step(zopeft.BatchLoss(twin, BATCH))
        assert equal(weights(twin), again), recorded
    for number, state, values in states:
        other = tiny().to(dtype)
        other.load_state_dict(values)
        resumed = turning(name, other, lr=lr)
        resumed.load_state_dict(state)
        for _ in range(12 - number):
            resumed.step(zopeft.BatchLoss(other, BATCH))
        assert equal(weights(other), again), number


@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_directions(way):
    model = tiny()
    method = turning("mezo", model, lr="auto", **WAYS[way])
    closure = zopeft.BatchLoss(model, BATCH)
    first = float(closure().detach())
    for _ in range(60):
        method.step(closure)
    assert float(closure().detach()) < first and method.budget.factors is not None
    for tally in method.budget.turns.tallies.values():
        assert tally.taken == 24 and tally.energy > 0.0


@pytest.mark.parametrize("way", ["", "4 directions, one side"])
@pytest.mark.parametrize("steps", [60, 100, 300])
def test_looks_stay_within_a_twentieth_of_the_passes(steps, way):
    model = tiny()
    method = turning("mezo", model, lr="auto", **WAYS[way])
    method.probing.steps_planned = steps
    for _ in range(steps):
        method.step(zopeft.BatchLoss(model, BATCH))
    assert method.budget.factors is not None
    passes = method.estimator.forwards * steps
    assert 0 < method.forward_passes - passes <= 0.05 * passes


def test_turns_say_nothing_of_the_signal_share():
    model = tiny()
    method = turning("mezo", model, lr="auto")
    for number in range(79):
        method.step(zopeft.BatchLoss(model, BATCH))
        if number == 76:
            # Thirty steps after the last turn their falls are too few to tell.
            assert method.rate.share == method.rate.start["share"]
    assert method.rate.share != method.rate.start["share"]


def test_a_run_too_short_for_turns_takes_none():
    assert [turns_of(planned) for planned in (0, 39, 40, 100, 240, 10**6)] == [48, 0, 8, 20, 48, 48]
    model = tiny()
    method = turning("mezo", model)
    method.probing.steps_planned = 20
    method.step(zopeft.BatchLoss(model, BATCH))
    assert served(method, method.last_record) == {"rest", "vocabulary"}
    assert method.forward_passes == 2


def test_broken_batches_among_the_turns_tell_nothing():
    good, broken = Tally(), Tally()
    for n in range(12):
        for tally in (good, broken):
            tally.squares.append(1.0 + n / 10.0)
            tally.bends.append(2.0 if n % 2 else math.nan)
    broken.squares.append(1e8)
    broken.bends.append(1e9)
    assert (broken.energy, broken.curvature) == (good.energy, good.curvature)
    assert (Tally().energy, Tally().curvature) == (0.0, 0.0)
    model = tiny()
    method = turning("mezo", model)
    for number in range(49):
        closure = zopeft.BatchLoss(model, BATCH)
        method.step((lambda loss: lambda: math.nan * loss())(closure) if number == 3 else closure)
    taken = {name: len(tally.squares) for name, tally in method.budget.turns.tallies.items()}
    assert taken == {"rest": 24, "vocabulary": 23} and method.budget.factors is not None


def test_nothing_is_shared_where_one_sort_tells_nothing():
    model = Known()
    method = turning("mezo", model)
    for _ in range(50):
        method.step(lambda: 1.0 + model.other(torch.eye(6)).sum())
    assert np.array_equal(method.budget.factors, np.ones(2, dtype=np.float32))


def test_only_vocabulary_and_rest_take_turns():
    model = tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    assert turning("mezo", model).budget.turns is None
    lora = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    method = turning("mezo", lora)
    method.step(zopeft.BatchLoss(lora, BATCH))
    assert method.budget.turns is None and method.forward_passes == 2


@pytest.mark.parametrize("rest", [True, False])
def test_layers_in_turn(rest, monkeypatch):
    """A step about some layers takes its turn where it is about the vocabulary too."""
    monkeypatch.setattr(turns, "MOST", 8)
    model = tiny()
    method = turning("mezo", model, layers="cyclic", layer_rest=rest)
    for _ in range(10):
        method.step(zopeft.BatchLoss(model, BATCH))
    budget = method.budget
    assert budget.turns.taken == (8 if rest else 0)
    if rest:
        # What the turns of some layers tell serves those of the others.
        found = dict(zip(budget.names, budget.factors.tolist(), strict=True))
        assert budget.factors.tolist() == [found[name] for name in budget.names]
        assert found["rest"] != found["vocabulary"]


def test_a_sort_whose_scales_are_zero_has_no_turn():
    model = tiny()
    method = turning("mezo", model)
    names = torch.tensor([float(name == "rest") for name in method.budget.names])
    method._scales = lambda: names
    for _ in range(3):
        method.step(zopeft.BatchLoss(model, BATCH))
    assert method.budget.turns is None and served(method, method.last_record) == {"rest"}


@pytest.mark.parametrize("way", ["", "4 directions", "4 directions, one side"])
def test_what_turns_have_looked_at_is_counted_once(way, monkeypatch):
    monkeypatch.setattr(turns, "MOST", 8)
    plain, looking = (turning("mezo", tiny(), lr="auto", **WAYS[way]) for _ in range(2))
    # One that takes the loss at the weights for ends of its own pays for none of it.
    looking._looks = lambda due: True
    for method in (plain, looking):
        for _ in range(9):
            method.step(zopeft.BatchLoss(method.blocks.model, BATCH))
    each = 1 if "one side" in way else plain.estimator.directions
    assert looking.budget.ahead[2] == 8 * each and looking.budget.ahead[3] == 0
    assert plain.budget.ahead[2] == each * sum(
        not math.isnan(bend) for one in plain.budget.turns.tallies.values() for bend in one.bends
    )
    assert 0 <= plain.budget.ahead[3] <= 8


def test_a_learning_rate_of_zero_changes_no_bit():
    model = tiny()
    start, method = weights(model), turning("zo_finetuner", model, lr=0.0)
    for _ in range(50):
        method.step(zopeft.BatchLoss(model, BATCH))
    assert equal(weights(model), start) and len(set(method.budget.factors.tolist())) == 2


def test_another_way_to_share_is_another_run():
    given, ours = make("mezo", tiny(), budget="given"), turning("mezo", tiny())
    with pytest.raises(InputError, match="budget 'turns' instead of 'given'"):
        header_of(given).check(header_of(ours), "journal")
    # A checkpoint of a run without turns has none of them begin in its midst.
    given.step(zopeft.BatchLoss(given.blocks.model, BATCH))
    ours.load_state_dict(given.state_dict())
    ours.step(zopeft.BatchLoss(ours.blocks.model, BATCH))
    assert served(ours, ours.last_record) == {"rest", "vocabulary"}
