"""lr="auto": the first look, and the rate that follows the run."""

import math

import pytest
import torch
from torch import nn

import zopeft
from zopeft.optim.learning_rate import first_look
from zopeft.optim.rate import SHARE, SHARE_LEAST, SHARE_MOST, RunningRate
from zopeft.optim.record import StepRecord

O, I = 30, 20  # noqa: E741


def record(step, plus, minus, lr, eps=1e-3, centre=None, skipped=False):
    grad = (plus - minus) / (2 * eps)
    return StepRecord(
        step, 0, (plus, minus), (grad,), (lr,), eps, 0.0, skipped=skipped, centre=centre
    )


def linear():
    torch.manual_seed(0)
    return nn.Linear(I, O, bias=False)


def test_first_look_on_a_quadratic():
    """The loss is the sum of squares: u' H u is 2 d, (grad' u)^2 is 4 |theta|^2 on average."""
    model = linear()
    with torch.no_grad():
        model.weight.mul_(0.01)
        method = zopeft.MeZO(zopeft.discover(model), lr="auto")
        look = first_look(
            method.engine, lambda: model.weight.double().square().sum(), None, 1e-3, 0
        )
    assert look.curvature == pytest.approx(2 * O * I, rel=0.1)
    assert look.energy == pytest.approx(4 * float(model.weight.detach().square().sum()), rel=0.8)
    assert (look.radius, look.forward_passes) == (1e-3, 11)


def test_first_look_widens_where_rounding_hides_the_bend():
    """A step of 1e-3 is lost in bf16 weights of 0.2, whose grain is 1e-3."""
    model = linear().to(torch.bfloat16)
    method = zopeft.MeZO(zopeft.discover(model), lr="auto")
    with torch.no_grad():
        look = first_look(
            method.engine, lambda: model.weight.double().square().sum(), None, 1e-3, 0
        )
    assert look.radius > 1e-3 and look.forward_passes == 9
    assert look.curvature == pytest.approx(2 * O * I, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_no_forward_uses_are_looked_at_too(dtype):
    """The parent reads the parameter itself, which the engine finds out with the first probe."""
    model = linear().to(dtype)
    method = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=1e-2)
    method.calibrate(lambda: model.weight.double().square().sum())
    assert method.rate.start["curvature"] == pytest.approx(2 * O * I, rel=0.2)


def test_the_rate_is_share_over_curvature_and_within_eps():
    rate = RunningRate(curvature=100.0, energy=1e-8, reach=1e-3)
    assert rate.lr == rate.first == SHARE / 100.0
    assert RunningRate(100.0, 4.0, 1e-3).lr == 1e-3 / 2.0
    assert RunningRate(0.0, 4.0, 1e-3).lr == 1e-3 / 2.0
    assert RunningRate(0.0, 0.0, 1e-3, fallback=1e-6).lr == 1e-6


def test_curvature_that_rises_lowers_the_rate_at_once_and_one_that_falls_lifts_it_slowly():
    rate = RunningRate(curvature=100.0, energy=1e-12, reach=1e-3)
    first, bend = rate.lr, 1000.0
    rate.note(record(0, 1.0, 1.0, rate.lr, centre=1.0 - bend * 1e-6 / 2))
    assert rate.lr == pytest.approx(SHARE / (0.6 * 100 + 0.4 * 1000), rel=1e-6)
    assert rate.factor == pytest.approx(rate.lr / first)
    low = rate.lr
    while not rate.due():
        # A centre that the rate has not asked for says nothing to it.
        rate.note(record(1, 1.0, 1.0, rate.lr, centre=1.0))
        assert rate.lr == low
    rate.note(record(5, 1.0, 1.0, rate.lr, centre=1.0))
    assert low < rate.lr <= 1.15 * low * (1 + 1e-12)


def test_share_follows_the_fall_of_the_loss():
    """A loss that falls by lr A - lr^2 G h / 2 a step shows the share A / G that was put in."""
    lr, energy, curvature = 1e-3, 4.0, 100.0
    for true in (0.0, 0.3, 0.9):
        rate = RunningRate(curvature, energy, reach=1.0)
        fall = lr * true * energy - lr**2 / 2 * energy * curvature
        for step in range(400):
            mean = 5.0 - fall * step
            half = 1.0 * math.sqrt(energy)
            centre = mean - curvature / 2 if rate.due() else None
            rate.note(record(step, mean + half, mean - half, lr, eps=1.0, centre=centre))
        expected = min(SHARE_MOST, max(SHARE_LEAST, true))
        assert rate.share == pytest.approx(expected, rel=0.05), true


def test_steps_without_a_finite_loss_halve_the_rate():
    rate = RunningRate(100.0, 0.0, 1e-3)
    rate.note(record(0, math.nan, math.nan, rate.lr, skipped=True))
    assert rate.lr == rate.first / 2


def test_a_look_that_is_not_finite_is_none():
    rate = RunningRate(100.0, 0.0, 1e-3)
    rate.note(record(0, 1.0, 1.0, rate.lr, centre=math.nan))
    assert rate.lr == rate.first


def test_looks_are_every_five_steps_then_every_ten():
    rate, looked = RunningRate(1.0, 1.0, 1e-3), []
    for step in range(130):
        if rate.due():
            looked.append(step)
        rate.note(record(step, 1.0, 1.0, rate.lr))
    assert looked == [*range(0, 100, 5), 100, 110, 120]


START = O * I * 0.1**2 / 2
"""The loss of the two quadratics below at their start."""


@pytest.mark.parametrize(("noise", "shares"), [(0.05, (0.4, 0.8)), (0.2, (0.1, 0.2))])
def test_auto_comes_close_to_the_best_constant_rate_of_a_quadratic(noise, shares):
    """L = |theta - target|^2 / 2 with targets that differ from batch to batch.

    h is d, and the best constant rate shifts with the noise by a factor of four; the two best of
    the shares 0.1, 0.2, 0.4, 0.8 are made. Rounding is forgotten as the loss falls: on other
    processors the losses are the same to 1e-6.
    """

    def final(lr, steps=1000):
        model = linear()
        with torch.no_grad():
            model.weight.fill_(0.1)
        generator = torch.Generator().manual_seed(1)
        method = zopeft.MeZO(zopeft.discover(model), lr=lr, eps=0.02, seed=3)
        for _ in range(steps):
            target = noise * torch.randn(O, I, generator=generator)
            method.step(lambda target=target: (model.weight - target).double().square().sum() / 2)
        return float(model.weight.detach().square().sum() / 2)

    best = min(final(share / (O * I)) for share in shares)
    assert best < 0.9 * START
    assert final("auto") < 1.2 * best


ONE_SIDED = {"directions": 4, "sides": "one"}


@pytest.mark.parametrize(
    ("options", "rival", "shares"),
    [
        ({"directions": 4}, {"directions": 4}, (0.2, 0.4)),
        (ONE_SIDED, ONE_SIDED, (0.1, 0.2)),
        ({**ONE_SIDED, "normalise": True}, ONE_SIDED, (0.1,)),
    ],
)
def test_auto_comes_close_to_the_best_constant_rate_with_several_directions(options, rival, shares):
    """The quadratic of above; a normalised step is compared with the best plain ones.

    Each is at most 1.09 times the best one, everywhere.
    """

    def final(lr, own):
        model = linear()
        with torch.no_grad():
            model.weight.fill_(0.1)
        generator = torch.Generator().manual_seed(1)
        method = zopeft.MeZO(zopeft.discover(model), lr=lr, eps=0.02, seed=3, **own)
        for _ in range(250):
            target = 0.1 * torch.randn(O, I, generator=generator)
            method.step(lambda target=target: (model.weight - target).double().square().sum() / 2)
        return float(model.weight.detach().square().sum() / 2)

    best = min(final(4 * share / (O * I), rival) for share in shares)
    assert best < 0.9 * START
    assert final("auto", options) < 1.2 * best


def test_a_given_rate_is_honoured_and_costs_nothing():
    model = linear()
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-4)
    for _ in range(3):
        method.step(lambda: model.weight.square().sum())
        assert method.last_record.lr == (1e-4,) and method.last_record.centre is None
    assert method.rate is None and method.forward_passes == 6 and method.clip.factor == 0.0


def test_a_loss_that_never_changes_gets_the_published_default():
    model = linear()
    method = zopeft.MeZO(zopeft.discover(model), lr="auto")
    assert method.calibrate(lambda: model.weight.sum() * 0 + 1.0) == 1e-6
    assert "published default" in method.lr_reason


def test_the_reason_names_both_bounds():
    model = linear()
    method = zopeft.MeZO(zopeft.discover(model), lr="auto")
    method.calibrate(lambda: model.weight.double().square().sum())
    assert "the lesser of signal share 0.2 over curvature 1.18e+03" in method.lr_reason
    assert "reach over gradient" in method.lr_reason and method.clip.factor == 2.0


def test_state_goes_on_with_the_same_bits():
    def loss():
        return (model.weight.double() - 1.0).square().sum()

    model = linear()
    method = zopeft.MeZO(zopeft.discover(model), lr="auto")
    for _ in range(70):
        method.step(loss)
    state, weight = method.state_dict(), model.weight.detach().clone()
    for _ in range(30):
        method.step(loss)
    after = model.weight.detach().clone()
    model = linear()
    with torch.no_grad():
        model.weight.copy_(weight)
    other = zopeft.MeZO(zopeft.discover(model), lr="auto")
    other.load_state_dict(state)
    for _ in range(30):
        other.step(loss)
    assert torch.equal(model.weight, after)
    assert not torch.equal(weight, linear().weight) and not torch.equal(after, weight)
    assert other.rate.state_dict() == method.rate.state_dict()
