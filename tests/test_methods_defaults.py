"""What a run starts from where nothing is given, and how fast lr=auto may move from there."""

import math
from itertools import pairwise

import pytest
import torch
from tiny_families import build
from torch import nn

import zopeft
from zopeft.models import attach
from zopeft.optim.defaults import default_eps, default_reach, fallback_lr
from zopeft.optim.rate import RunningRate
from zopeft.optim.record import StepRecord

LORA, PROMPT = (1e-4, 1e-2), (1e-2, 1e-1)
DEFAULTS = {
    # MeZO's published lr and eps; p-tuning and prompt are prompts as its prefix is.
    **dict.fromkeys(("lora", "dora", "rslora"), LORA),
    **dict.fromkeys(("prefix", "prompt", "p-tuning"), PROMPT),
    # Of the others nobody has published any.
    "adalora": (1e-1, 1e-1),
    "vera": (1e-1, 1e-1),
    "ia3": (1e-2, 1e-2),
    "loha": (1e-2, 1e-2),
    "lokr": (1e-3, 1e-2),
    "layernorm": (1e-3, 1e-2),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_adapter_starts_from_the_numbers_of_its_type(name):
    model = attach(build("llama"), name, {"r": 4} if name == "vera" else {}, seed=1)
    blocks = zopeft.discover(model)
    lr, eps = DEFAULTS[name]
    assert (fallback_lr(blocks), default_eps(blocks)) == (lr, eps)
    method = zopeft.MeZO(blocks, lr="auto")
    # A loss that never changes has nothing to say of a rate.
    method.calibrate(lambda: torch.tensor(1.0))
    assert (method.param_groups[0]["lr"], method.eps) == (lr, eps)
    assert method.rate.start["reach"] == eps


def test_full_weights_start_from_mezos_and_reach_twice_as_far():
    model = nn.Linear(20, 30, bias=False)
    blocks = zopeft.discover(model)
    assert (fallback_lr(blocks), default_eps(blocks), default_reach(blocks)) == (1e-6, 1e-3, 2.0)
    method = zopeft.MeZO(blocks, lr="auto", seed=1)
    # Straight: nothing bends, so that the step is as long as the reach.
    method.calibrate(lambda: 50.0 * model.weight.double().sum())
    reach = method.rate.start["reach"]
    assert reach == 2e-3
    energy = method.rate.start["energy"]
    assert energy > 1e4
    assert method.rate.first == pytest.approx(reach / math.sqrt(energy), rel=1e-6)


def test_a_rate_that_is_asked_up_grows_by_a_seventh_a_look():
    """From a curvature of 1e6 to none: what is asked lies far above for all of these looks."""
    rate = RunningRate(curvature=1e6, energy=1e-20, reach=1e-3)
    rates, step = [rate.lr], 0
    while len(rates) < 6:
        due = rate.due()
        rate.note(_level(step, rate.lr, 1.0 if due else None))
        step += 1
        if due:
            rates.append(rate.lr)
    grown = [after / before for before, after in pairwise(rates)]
    # The slower of the two running curvatures falls by a tenth a look, the bound is above that.
    assert grown[0] == pytest.approx(1 / 0.9, rel=1e-6)
    rate._slow = rate._fast = 0.0
    low = rate.lr
    while not rate.due():
        rate.note(_level(step, rate.lr, None))
    rate.note(_level(step, rate.lr, 1.0))
    assert rate.lr == pytest.approx(1.15 * low, rel=1e-12)


def _level(step, lr, centre):
    return StepRecord(step, 0, (1.0, 1.0), (0.0,), (lr,), 1e-3, 0.0, centre=centre)
