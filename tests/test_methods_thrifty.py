"""lr="auto" from the first step on: what it costs, what it takes from the steps, and replay."""

import math

import pytest
import torch
from test_methods import Quadratic, equal, weights
from test_methods_rate import record

import zopeft
from zopeft.methods.mezo import MeZO
from zopeft.optim.estimator import Estimator
from zopeft.optim.measured import CAUTION
from zopeft.optim.rate import SHARE, SHARE_LEAST, SHARE_MOST
from zopeft.optim.thrifty import CLIMB, FREE, ThriftyRate, looks_until

ESTIMATORS = {
    "pair": {},
    "pairs": {"directions": 3},
    "one side": {"directions": 4, "sides": "one"},
    "normalised": {"directions": 4, "sides": "one", "normalise": True},
}


def made(lr="auto", planned=0, kind=MeZO, **options):
    model = Quadratic()
    method = kind(zopeft.discover(model), lr=lr, eps=1e-3, seed=5, **options)
    method.probing.steps_planned = planned
    return model, method


@pytest.mark.parametrize("way", ESTIMATORS)
@pytest.mark.parametrize("steps", [1, 30, 150])
def test_measuring_takes_one_pass_in_twenty_and_one_before_the_first_update(way, steps):
    model, method = made(planned=steps, **ESTIMATORS[way])
    own = method.estimator.forwards * steps
    method.step(model.loss)
    assert method.forward_passes == method.estimator.forwards + 1
    for _ in range(steps - 1):
        method.step(model.loss)
    measuring = method.forward_passes - own
    assert measuring == max(1, math.floor(0.05 * own + 1e-9))


@pytest.mark.parametrize("forwards", [2, 5, 8])
def test_without_a_plan_looks_come_early_and_then_one_in_twenty(forwards):
    looks = [looks_until(step, 0, forwards) for step in range(1, 1001)]
    assert looks[0] >= 1 and looks[-1] == 50 * forwards and looks == sorted(looks)
    assert looks[24] == pytest.approx(0.05 * forwards * 50, abs=1)


def test_no_step_goes_further_than_its_own_probes_have_looked():
    """The first one neither: its slope, and its bend, are known before it is made."""
    rate = ThriftyRate(reach=1e-3, fallback=1e-6)
    slope, bend, eps = 50.0, 10.0, 1e-3
    first = record(0, slope * eps, -slope * eps, 0.0, centre=-bend * eps**2 / 2)
    assert rate.first == 1e-6 and rate.due()
    assert rate.first * rate.factor_of(first) == pytest.approx(1e-3 / slope)
    steep = record(0, eps, -eps, 0.0, centre=-1e5 * eps**2 / 2)
    careful = SHARE / (1e5 * (1 + CAUTION))
    assert rate.first * rate.factor_of(steep) == pytest.approx(careful)
    rate.note(steep)
    assert rate.lr == pytest.approx(careful)


def test_caution_goes_with_the_looks_and_growth_is_bounded_later():
    rate = ThriftyRate(reach=1.0, fallback=1e-6, steps=10_000)
    for step in range(100):
        before = rate.lr
        rate.note(record(step, 1e-3, -1e-3, rate.lr, centre=-100.0 * 1e-6 / 2))
        if step >= FREE:
            assert rate.lr <= before * CLIMB * (1 + 1e-12)
    seen = rate.measured.bends
    assert seen > 10
    wanted = rate.share / (100.0 * (1 + CAUTION / math.sqrt(seen)))
    assert rate.lr == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("way", ["pair", "one side"])
def test_losses_that_are_not_finite_teach_nothing_and_halve_the_rate(way):
    rate = ThriftyRate(reach=1e-3, fallback=1e-6, estimator=Estimator(**ESTIMATORS[way]))
    measured = rate.measured
    rate.note(record(0, math.nan, math.nan, 1e-3, centre=1.0, skipped=True))
    assert rate.measured == measured and rate.lr == 5e-7 and rate.share == SHARE


@pytest.mark.parametrize("true", [0.0, 0.3, 0.9])
def test_the_share_follows_the_fall_of_the_loss(true):
    lr, energy, curvature = 1e-3, 4.0, 100.0
    rate = ThriftyRate(reach=1.0, fallback=1.0, steps=600)
    fall = lr * true * energy - lr**2 / 2 * energy * curvature
    for step in range(600):
        mean, half = 5.0 - fall * step, math.sqrt(energy)
        centre = mean - curvature / 2 if rate.due() else None
        rate.note(record(step, mean + half, mean - half, lr, eps=1.0, centre=centre))
    assert rate.share == pytest.approx(min(SHARE_MOST, max(SHARE_LEAST, true)), rel=0.1)


class Stubborn(MeZO):
    """A method of somebody's own, whose plan looks nowhere but along its direction."""

    def plan(self, step):
        u = step.direction()
        plus, minus = yield [u.at(step.eps), u.at(-step.eps)]
        return [step.descend(u, step.slope(plus, minus))]


def test_a_plan_that_does_not_look_has_its_rate_from_a_look_ahead():
    model, method = made(kind=Stubborn)
    method.step(model.loss)
    assert method.forward_passes == 11 + 2 and method.rate.start["bends"] == 5
    assert method.rate.start["curvature"] > 0 and not equal(weights(model), weights(Quadratic()))


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("way", ESTIMATORS)
def test_a_replay_and_a_restored_run_have_the_same_bits(way, ahead):
    model, method = made(planned=40, **ESTIMATORS[way])
    if ahead:
        method.calibrate(model.loss)
    records, saved = [], None
    for step in range(40):
        method.step(model.loss)
        records.append(method.last_record)
        if step == 24:
            saved, then = method.state_dict(), weights(model)
    again, twin = made(**ESTIMATORS[way])
    twin.begin_rate(method.rate.start, method.rate.first)
    for one in records:
        twin.replay(one)
    assert equal(weights(again), weights(model)) and not equal(weights(again), then)
    assert twin.rate.state_dict() == method.rate.state_dict()
    restored, other = made(**ESTIMATORS[way])
    with torch.no_grad():
        for parameter, value in zip(restored.parameters(), then, strict=True):
            parameter.copy_(value)
    other.load_state_dict(saved)
    for _ in range(15):
        other.step(restored.loss)
    assert equal(weights(restored), weights(model))
    assert other.rate.state_dict() == method.rate.state_dict()
