"""What param groups tell of the learning rate, at every moment, and what schedules make of it."""

import copy
import math

import pytest
import torch
from test_methods import Quadratic, equal, weights
from torch.optim import lr_scheduler

import zopeft
from zopeft.errors import InputError
from zopeft.optim.shown_rate import ShownRate, guard

STEPS = 30
WAYS = {
    "pair": {},
    "normalised": {"directions": 3, "sides": "one", "normalise": True},
}
SCHEDULES = {
    "from the first": lambda one: lr_scheduler.LambdaLR(one, lambda t: 1 - t / 60),
    "from the last": lambda one: lr_scheduler.StepLR(one, 4, gamma=0.8),
    "cosine": lambda one: lr_scheduler.CosineAnnealingLR(one, 60),
    "multiplied": lambda one: lr_scheduler.MultiplicativeLR(one, lambda t: 0.98),
}


def started(way="pair", ahead=True, **options):
    """A method whose rate is settled, by a look ahead or by none."""
    model = Quadratic()
    method = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=1e-3, **WAYS[way], **options)
    found = method.calibrate(model.loss) if ahead else method.settle(model.loss)
    assert found == method.rate.first > 0 and (method.forward_passes > 0) == ahead
    return model, method


def shown(method):
    rates = {group["lr"] for group in method.param_groups}
    assert len(rates) == 1
    return rates.pop()


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_groups_tell_the_rate_of_the_step_at_every_moment(way, ahead):
    model, method = started(way, ahead)
    assert shown(method) == method.rate.first
    seen = []
    for step in range(STEPS):
        method.estimate(model.loss)
        before = shown(method)
        method.apply()
        assert before == shown(method) == method.last_record.lr[0]
        if step == 10:
            # A copy of the state says nothing else, and leaves it as it is.
            method.state_dict()
            assert shown(method) == before
        seen.append(before)
    assert len(set(seen)) > 3
    assert way == "normalised" or seen[0] != method.rate.first


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_multiplies_the_running_rate(name, told, ahead):
    """Whether it counts from the first rate or from the last, and whether it was guarded."""
    model, method = started(ahead=ahead)
    schedule = SCHEDULES[name](method)
    if told:
        assert guard(schedule) is schedule and guard(schedule) is schedule
        assert isinstance(schedule, lr_scheduler.LRScheduler)
    plain = torch.optim.SGD([torch.zeros(1)], lr=method.rate.first)
    twin = SCHEDULES[name](plain)
    factors = []
    for _ in range(STEPS):
        method.estimate(model.loss)
        factor, wanted = method.shown.factor, plain.param_groups[0]["lr"]
        assert shown(method) == wanted * factor
        method.step()
        assert method.last_record.lr == (wanted * factor,)
        if told:
            assert shown(method) == wanted * factor
        schedule.step()
        plain.step()
        twin.step()
        if told:
            assert schedule.get_last_lr()[0] == shown(method)
            assert shown(method) == plain.param_groups[0]["lr"] * factor
        factors.append(factor)
    assert min(factors) < 0.99 * max(factors)
    assert plain.param_groups[0]["lr"] < 0.9 * method.rate.first
    assert schedule.state_dict().keys() == twin.state_dict().keys()


def test_a_plateau_lowers_the_running_rate():
    """It is no `LRScheduler`, and nothing in the groups says that there is one."""
    for told in (True, False):
        model, method = started()
        plateau = lr_scheduler.ReduceLROnPlateau(method, factor=0.5, patience=0)
        plateau = guard(plateau) if told else plateau
        for _ in range(12):
            method.step(model.loss)
        for loss in (1.0, 2.0):
            plateau.step(loss)
        method.estimate(model.loss)
        wanted = method.rate.first * method.shown.factor / 2
        assert shown(method) == pytest.approx(wanted, rel=1e-12)


def test_a_schedule_that_is_made_in_the_middle_multiplies_what_it_finds():
    model, method = started()
    for _ in range(12):
        method.step(model.loss)
    found, factor = shown(method), method.shown.factor
    assert factor != 1.0
    schedule = lr_scheduler.LambdaLR(method, lambda t: 1.0 if t < 3 else 0.5)
    for t in range(6):
        method.estimate(model.loss)
        share = 1.0 if t < 3 else 0.5
        wanted = found * share * method.shown.factor / factor
        assert shown(method) == pytest.approx(wanted, rel=1e-12)
        method.step()
        schedule.step()


def test_a_rate_that_somebody_sets_is_the_rate_of_now():
    model, method = started()
    for _ in range(12):
        method.step(model.loss)
    method.estimate(model.loss)
    for group in method.param_groups:
        group["lr"] = 1e-5
    method.apply()
    assert method.last_record.lr == (1e-5,)
    assert shown(method) == 1e-5
    factor = method.shown.factor
    method.estimate(model.loss)
    assert method.shown.factor != factor
    assert shown(method) == pytest.approx(1e-5 * method.shown.factor / factor, rel=1e-12)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("scheduled", [None, "guarded", "plain"])
def test_a_restored_run_shows_the_same_and_goes_on_with_the_same_bits(scheduled, ahead):
    model, method = started(ahead=ahead)
    schedule = None
    if scheduled:
        schedule = SCHEDULES["from the first"](method)
        schedule = guard(schedule) if scheduled == "guarded" else schedule
    for _ in range(15):
        method.step(model.loss)
        if schedule:
            schedule.step()
    other = Quadratic()
    other.load_state_dict(model.state_dict())
    twin = zopeft.MeZO(zopeft.discover(other), lr=1.0, eps=1e-3)
    again = None
    if schedule:
        again = SCHEDULES["from the first"](twin)
        again = guard(again) if scheduled == "guarded" else again
        again.load_state_dict(schedule.state_dict())
    saved = method.state_dict()
    # As before groups told the rate: without the running factor.
    assert saved["param_groups"][0]["lr"] == pytest.approx(
        method.rate.first * (1 - 15 / 60 if schedule else 1), rel=1e-12
    )
    twin.load_state_dict(copy.deepcopy(saved))
    assert shown(twin) == shown(method)
    for _ in range(15):
        for one, at, plan in ((method, model, schedule), (twin, other, again)):
            one.step(at.loss)
            if plan:
                plan.step()
        assert twin.last_record.lr == method.last_record.lr
        assert shown(twin) == shown(method)
    assert equal(weights(other), weights(model))


@pytest.mark.parametrize("way", WAYS)
def test_a_replayed_step_shows_its_rate(way):
    model, method = started(way, ahead=False)
    records = []
    for _ in range(STEPS):
        method.step(model.loss)
        records.append(method.last_record)
    other = Quadratic()
    twin = zopeft.MeZO(zopeft.discover(other), lr="auto", eps=1e-3, **WAYS[way])
    twin.begin_rate(method.rate.start, method.rate.first)
    for record in records:
        twin.recall(record)
        assert shown(twin) == record.lr[0]
        twin.apply()
        assert shown(twin) == record.lr[0]
    assert equal(weights(other), weights(model))
    assert len({record.lr for record in records}) > 3


def test_a_bad_step_shows_the_rate_that_it_would_have_had():
    model, method = started(max_bad_steps=5)
    for _ in range(6):
        method.step(model.loss)
    method.step(lambda: torch.tensor(math.nan))
    assert method.last_record.skipped and shown(method) == method.last_record.lr[0]
    method.estimate(model.loss)
    assert shown(method) <= method.last_record.lr[0] / 2 * (1 + 1e-12)


def test_a_schedule_made_before_the_rate_is_known_is_refused():
    """It would multiply the zero that stands there until the first batch."""
    model = Quadratic()
    method = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=1e-3)
    lr_scheduler.LambdaLR(method, lambda t: 1.0)
    before = weights(model)
    with pytest.raises(InputError, match="lr: a schedule was made before 'auto' was settled"):
        method.step(model.loss)
    assert equal(weights(model), before)


def test_a_given_rate_is_left_alone():
    model = Quadratic()
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=1e-3)
    schedule = guard(SCHEDULES["from the first"](method))
    for step in range(5):
        method.step(model.loss)
        assert method.last_record.lr == (1e-3 * (1 - step / 60),)
        schedule.step()
        assert shown(method) == schedule.get_last_lr()[0] == 1e-3 * (1 - (step + 1) / 60)
    plain = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    other = lr_scheduler.StepLR(plain, 1)
    assert type(guard(other)) is lr_scheduler.StepLR
    assert ShownRate().state_dict() == {"factor": 1.0, "origin": 1.0}
