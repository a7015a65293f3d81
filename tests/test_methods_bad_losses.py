"""Losses that are not finite, at each of the points that a step looks at."""

import math

import pytest
import torch
from test_methods import Quadratic, equal, make, weights

import zopeft
from zopeft.errors import RunError

ONE_SIDED = {"directions": 3, "sides": "one"}


def spoilt(model, *calls):
    """The model's loss, except that the calls of these numbers give another one."""
    count = 0

    def closure():
        nonlocal count
        count += 1
        return torch.tensor(math.inf) if count - 1 in calls else model.loss()

    return closure


@pytest.mark.parametrize("way", [ONE_SIDED, {**ONE_SIDED, "normalise": True}, {"sides": "one"}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_sided_steps_are_bad_where_the_loss_at_the_weights_is(way, bad):
    """The losses aside of it are finite, and no difference can be taken of them."""
    model = Quadratic()
    method = make("mezo", model, max_bad_steps=3, **way)
    method.step(model.loss)
    assert not method.last_record.skipped and method.skipped == 0
    before, passes = weights(model), method.estimator.forwards
    for count in (1, 2):
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            return torch.tensor(bad) if calls == 1 else model.loss()

        method.step(closure)
        assert calls == passes
        record = method.last_record
        assert all(map(math.isfinite, record.losses)) and not math.isfinite(record.centre)
        assert record.skipped and method.skipped == count
        assert equal(weights(model), before)
    with pytest.raises(RunError, match="loss: not finite for 3 steps in a row"):
        method.step(spoilt(model, 0))
    method = make("mezo", model, max_bad_steps=3, **way)
    method.step(model.loss)
    assert not equal(weights(model), before)


@pytest.mark.parametrize("call", range(4))
def test_one_bad_direction_makes_a_bad_step(call):
    model = Quadratic()
    method = make("mezo", model, **ONE_SIDED)
    before = weights(model)
    method.step(spoilt(model, call))
    assert method.last_record.skipped and method.forward_passes == 4
    assert equal(weights(model), before)


def test_a_look_that_is_not_finite_says_nothing_to_a_fine_tuner():
    """One-sided, lr=auto looks from the other side; the step itself does not need that loss."""
    model = Quadratic()
    blocks = zopeft.discover(model)
    finetuner = zopeft.FineTuner.initial(blocks, seed=1)
    method = zopeft.ZOFineTuner(blocks, finetuner, lr="auto", eps=1e-3, **ONE_SIDED)
    method.settle(model.loss)
    assert method.rate.due()
    method.step(spoilt(model, 4))
    record = method.last_record
    assert record.mirror == math.inf and not record.skipped
    # As where the other side was not looked at: on a straight line.
    straight = 2.0 * record.centre - record.losses[0]
    assert method._losses.tolist() == pytest.approx([record.losses[0], straight])
    before = weights(model)
    method.step(model.loss)
    assert not method.last_record.skipped
    assert torch.isfinite(torch.tensor(method.last_record.scales)).all()
    assert not equal(weights(model), before)
