"""The signal share by the losses of a batch's examples: what it is, what runs keep of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_methods import WAYS, equal, make, weights
from test_methods_rate import record
from test_methods_selection import BATCH, IDS, tiny

import zopeft
from zopeft.journal.codec import decode, encode
from zopeft.journal.header import header_of
from zopeft.optim.estimator import Estimator
from zopeft.optim.rate import SHARE, SHARE_LEAST, SHARE_MOST
from zopeft.optim.signal import CARE, FIRST, NOTE, Examples, Signal
from zopeft.optim.taken import Taken
from zopeft.optim.thrifty import LEAST_FALL, ThriftyRate
from zopeft.probing.examples import Told

EPS = 1e-3
SETTINGS = {"lr": "auto", "eps": 1e-2, "seed": 5, "share": "examples"}
PAIRS = {
    "two sides": (Estimator(), Taken(first=0, count=2)),
    "two directions": (Estimator(2), Taken(first=1, count=4)),
    "one side": (Estimator(3, "one"), Taken(first=1, count=3)),
}


def heard(way, slopes, weights, bends=0.0):
    """What would be told of examples with some slopes along each direction, [K, B]."""
    estimator, taken = PAIRS[way]
    rows = [torch.full_like(slopes[0], 2.0)] * taken.first
    for own in slopes:
        rows.append(2.0 + EPS * own + EPS**2 / 2 * bends)
        if not estimator.one_sided:
            rows.append(2.0 - EPS * own + EPS**2 / 2 * bends)
    losses = torch.stack(rows)
    return Told(losses, weights, losses @ weights)


@pytest.mark.parametrize("way", PAIRS)
@pytest.mark.parametrize("even", [True, False])
def test_what_examples_have_in_common_is_found_without_bias(way, even):
    """Slopes of 3 in common and 5 apart: batches of 6 have an energy of 9 + 25 / 6, or more."""
    generator = torch.Generator().manual_seed(0)
    estimator, taken = PAIRS[way]
    signals, energies = [], []
    for _ in range(4000):
        slopes = 3.0 + 5.0 * torch.randn(estimator.directions, 6, generator=generator).double()
        weights = torch.ones(6).double()
        if not even:
            weights = 0.2 + torch.rand(6, generator=generator).double()
        weights /= weights.sum()
        examples = Examples(estimator, EPS)
        told = heard(way, slopes, weights)
        examples.add(told, taken)
        signals.append(examples.signal())
        energies.append(float((slopes @ weights).square().mean()))
    error = np.std(signals) / math.sqrt(len(signals))
    assert abs(np.mean(signals) - 9.0) < 4 * error and error < 0.4
    assert np.mean(energies) - np.mean(signals) > 20 * error / 3


@pytest.mark.parametrize("way", PAIRS)
def test_micro_batches_are_one_batch(way):
    estimator, taken = PAIRS[way]
    slopes = torch.randn(estimator.directions, 8, generator=torch.Generator().manual_seed(1))
    slopes, found = slopes.double(), []
    for parts in (1, 2, 4):
        examples = Examples(estimator, EPS)
        for own in slopes.chunk(parts, 1):
            told = heard(way, own, torch.full((8 // parts,), parts / 8).double())
            examples.add(told, taken)
        found.append(examples.signal())
    assert found[0] != 0.0 and found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_what_cannot_be_told_is_not():
    estimator, taken = PAIRS["two sides"]
    slopes, even = torch.ones(1, 4).double(), torch.full((4,), 0.25).double()
    told = heard("two sides", slopes, even)
    known = Examples(estimator, EPS)
    known.add(told, taken)
    assert known.signal() == pytest.approx(1.0, rel=1e-6)
    alone = heard("two sides", slopes[:, :1], torch.ones(1).double())
    for found, own in ((None, taken), (told, Taken()), (alone, taken)):
        examples = Examples(estimator, EPS)
        examples.add(found, own)
        assert math.isnan(examples.signal())
    # One micro-batch that tells nothing, and nothing is known of the step.
    known.add(None, taken)
    assert math.isnan(known.signal())


@pytest.mark.parametrize("true", [0.0, 0.3, 0.6, 0.9])
def test_the_share_is_that_of_the_steps_and_bounded(true):
    signal = Signal()
    for step in range(2000):
        size = 1.0 + step % 3
        signal.note(true * size**2, [size])
    wanted = min(SHARE_MOST, max(SHARE_LEAST, CARE * true))
    assert signal.share(SHARE, 1.0) == pytest.approx(wanted, rel=0.01)
    again = Signal()
    again.load_state_dict(signal.state_dict())
    assert again.share(SHARE, 1.0) == signal.share(SHARE, 1.0) and again.steps == 2000


def test_it_begins_with_what_is_known_and_soon_goes_by_what_is_seen():
    signal = Signal()
    assert signal.share(0.2, 1.0) == 0.2
    signal.note(4.0 * 0.5, [2.0])
    assert signal.share(0.2, 1.0) == pytest.approx((CARE * 0.5 + FIRST * 0.2) / (1 + FIRST))


def test_half_a_bend_in_one_sided_differences_is_no_signal():
    """All examples bend alike, so what is off by it looks as if they agreed."""
    generator = torch.Generator().manual_seed(2)
    estimator, taken = PAIRS["one side"]
    bend, signal, plain = 8e3, Signal(), Signal()
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(1500):
        slopes = 2.0 * torch.randn(3, 1, generator=generator).double()
        slopes = slopes + 4.0 * torch.randn(3, 4, generator=generator).double()
        told = heard("one side", slopes, weights, bend)
        examples = Examples(estimator, EPS)
        examples.add(told, taken)
        own = told.returned
        grads = ((own[1:] - own[0]) / EPS).tolist()
        signal.note(examples.signal(), grads)
        plain.note(examples.signal(), grads)
    # Energy 4 + 16 / 4 of slopes and (eps h / 2)^2 = 16 of the bend.
    assert signal.share(SHARE, 8.0 / 24.0) == pytest.approx(CARE * 0.5, abs=0.04)
    assert plain.share(SHARE, 1.0) == SHARE_MOST


def test_the_rate_goes_by_it_until_the_loss_tells():
    """And by what it began with where no step tells, or the run began without."""
    told, silent = (ThriftyRate(1.0, fallback=1.0, steps=600, signal=1.0) for _ in range(2))
    before = ThriftyRate(1.0, fallback=1.0, steps=600)
    for step in range(60):
        one = record(step, 5.0 + EPS, 5.0 - EPS, 1e-3, centre=5.0 - 100 * EPS**2 / 2)
        noted = one.__class__(**{**vars(one), "notes": {NOTE: np.array([0.6], np.float32)}})
        assert told.listens == (step + 1 < LEAST_FALL) and not before.listens
        known = told.share
        for rate, seen in ((told, noted), (silent, one), (before, noted)):
            rate.note(seen)
        assert silent.share == before.share and silent.lr == before.lr
        if step + 1 < LEAST_FALL:
            count = step + 1
            wanted = (count * CARE * 0.6 + FIRST * SHARE) / (count + FIRST)
            assert told.share == pytest.approx(wanted, rel=1e-6) and before.share == SHARE
            assert told.lr > silent.lr or not step
        else:
            # A loss that does not fall says so, whatever the examples have said.
            assert told.share < known
    assert told._signal.steps == LEAST_FALL - 1 and before._signal.steps == 0


def closure(model, rows=slice(None), loss=None):
    return zopeft.BatchLoss(model, {name: value[rows] for name, value in BATCH.items()}, loss)


def run(entry, steps, micro=1, **options):
    """Returns model, method and its records, packed and unpacked."""
    model = tiny()
    method = make(entry, model, **SETTINGS, **options)
    records, before = [], None
    for _ in range(steps):
        for part in range(micro):
            method.estimate(closure(model, slice(part, None, micro)))
        method.apply()
        before = decode(encode(method.last_record, before), before)
        records.append(before)
    return model, method, records


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mezo", "zo_finetuner"])
def test_runs_learn_their_share_and_are_replayed_and_resumed(name, way, micro):
    model, method, records = run(f"{name} {way}".strip(), 12, micro)
    assert all(NOTE in one.notes and one.notes[NOTE].shape == (1,) for one in records)
    assert "signal share 0.2, then by examples, over curvature" in method.lr_reason
    state = method.rate.state_dict()
    assert state["signal"]["steps"] == 12 and state["signal"]["energy"] > 0.0
    assert SHARE_LEAST <= method.rate.share <= SHARE_MOST
    twin = tiny()
    replayed = make(f"{name} {way}".strip(), twin, **SETTINGS)
    header = header_of(method)
    replayed.begin_rate(header.rate, header.learning_rate)
    for one in records:
        replayed.replay(one)
    assert equal(weights(twin), weights(model)) and replayed.rate.state_dict() == state
    other = tiny()
    other.load_state_dict(model.state_dict())
    resumed = make(f"{name} {way}".strip(), other, **SETTINGS)
    resumed.load_state_dict(method.state_dict())
    for mine, own in ((model, method), (twin, replayed), (other, resumed)):
        own.step(closure(mine))
    assert equal(weights(other), weights(model)) and equal(weights(twin), weights(model))
    assert resumed.rate.state_dict() == method.rate.state_dict() == replayed.rate.state_dict()


def test_it_costs_no_pass_and_is_that_of_the_texts_alone():
    _, method, (one, *_) = run("mezo", 1)
    assert method.forward_passes == 3
    twin = tiny()
    probe = make("mezo", twin, lr=0.0, eps=1e-2, seed=5)
    slopes = []
    for row in range(len(IDS)):
        probe.steps = 0
        probe.step(closure(twin, slice(row, row + 1)))
        slopes.append(probe.last_record.projected_grads[0] / len(IDS))
    total, squares = sum(slopes), sum(slope**2 for slope in slopes)
    assert total == pytest.approx(one.projected_grads[0], rel=1e-2)
    signal = (total**2 - squares) / (1 - 1 / len(IDS))
    assert float(one.notes[NOTE][0]) == pytest.approx(signal, rel=2e-2, abs=2e-2 * total**2)


@pytest.mark.parametrize("way", ["a given rate", "a given share", "no examples", "one text"])
def test_runs_that_cannot_tell_it_have_no_note(way):
    model = tiny()
    lr, share = 1e-3 if way == "a given rate" else "auto", "examples"
    if way == "a given share":
        share = "given"
    method = make("mezo", model, lr=lr, share=share)
    own = closure(model, slice(0, 1) if way == "one text" else slice(None))
    for _ in range(3):
        method.step((lambda: own()) if way != "no examples" else lambda: model(**BATCH).loss)
        assert NOTE not in (method.last_record.notes or {})


def test_a_run_that_began_without_goes_on_without():
    _, method, _ = run("mezo", 3)
    state = method.state_dict()
    rate = state["zopeft"]["rate"]
    del rate["start"]["signal"], rate["signal"]
    model = tiny()
    resumed = make("mezo", model, **SETTINGS)
    resumed.load_state_dict(state)
    assert not resumed.rate.listens
    resumed.step(closure(model))
    assert NOTE not in (resumed.last_record.notes or {})
    assert resumed.rate.state_dict()["signal"]["steps"] == 0
