"""The contracts of every zeroth-order method of the registry, whatever it does.

Each begins by asserting that the weights have moved: a method that writes nothing keeps
every promise about what it writes.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import asdict

import pytest
import torch
from field import FIELD, extras
from test_methods import Quadratic as Whole
from test_methods import equal, weights

import zopeft
from zopeft.engine.carrier import UnstackableError
from zopeft.errors import InputError, RunError
from zopeft.journal.codec import decode, encode
from zopeft.methods import METHODS
from zopeft.optim.declared import settings_of
from zopeft.optim.zeroth_order import ZerothOrder

CARRIERS = ["flat", "modules"]
DTYPES = [torch.float32, torch.bfloat16]
SMALL = {
    "zo_adamu": {"warmup": 2},
    "subzero_plus": {"queries": 4},
    "zo_mopi": {"queries": 3, "beta": 0.5},
    "dizo": {"every": 3, "rounds": 2},
    "lozo": {"nu": 3},
    "lozo_m": {"nu": 3},
    "subzero": {"renew": 3},
    "sparse_mezo": {"renew": 3, "sparsity": 0.25},
    "hizoo": {"smooth": 1e-3},
    "lezo": {"skip": 0.5},
    "mezo_svrg": {"inner": 0.5},
    "grzo": {"groups": 3},
}
"""Options with which a few steps show all that a method does."""
RATES = {
    "tezo_adam": 0.1,
    "subzero_plus": 0.3,
    "mezo_adam": 0.15,
    "r_adazo": 0.005,
    "fzoo": 0.15,
    "zo_sign": 0.03,
    "meazo": 0.06,
    "zo_muon": 0.3,
    "zo_mopi": 0.3,
    "kerzoo": 1e-3,
    "bszo": 0.06,
    "grzo": 1e-4,
}
"""Learning rates that suit the quadratic, of methods whose steps have a length of their own."""


class Rows:
    """A closure whose loss is the sum over some examples, and can be had of groups of them."""

    def __init__(self, function):
        self.function = function

    def __call__(self):
        return self.function(torch.arange(6)).sum()

    def grouped(self, count, only):
        if only is None:
            raise UnstackableError("groups run by themselves", True)
        return count * self.function(torch.arange(6)[only::count]).sum()

    def __rmul__(self, factor):
        return Rows(lambda rows: factor * self.function(rows))

    def __add__(self, other):
        return Rows(lambda rows: self.function(rows) + other.function(rows))


class Quadratic(Whole):
    """The quadratic of all methods' tests, as a sum over six examples."""

    @property
    def loss(self):
        return Rows(self.of_rows)

    def of_rows(self, rows):
        inputs = torch.eye(6, dtype=self.first.weight.dtype)[rows]
        found = self.first(inputs).float().square().sum(1)
        found = found + 0.3 * self.second(inputs).float().square().sum(1)
        return found + self.norm(inputs).float().square().sum(1) / 36

    def of_columns(self, rows):
        return self.first.weight[:, rows].square().sum(0)


def make(name, model, **options):
    blocks = zopeft.discover(model)
    options = {"lr": 1e-3, "eps": 1e-2, "seed": 1, **SMALL.get(name, {}), **options}
    options = {**extras(name, blocks), **options}
    if not METHODS[name].decays:
        options.pop("weight_decay", None)
    return METHODS[name](blocks, **options)


def moved(model, start):
    return not equal(weights(model), start)


def test_the_field_is_there():
    assert len(FIELD) >= 28
    for name in METHODS:
        assert METHODS.about(name) and METHODS[name].__doc__


@pytest.mark.parametrize("name", FIELD)
def test_its_docstring_has_equation_and_reference(name):
    text = METHODS[name].__doc__
    assert "``" in text and "References:" in text and ("<-" in text or "=" in text)


@pytest.mark.parametrize("name", FIELD)
def test_its_options_say_what_they_are(name):
    shared = set(inspect.signature(ZerothOrder.__init__).parameters)
    for setting in settings_of(METHODS[name].Options):
        assert setting.about and len(setting.about) < 100
        assert setting.name not in shared | {"name", "finetuner", "rows"}


@pytest.mark.parametrize("name", FIELD)
def test_it_learns(name):
    model = Quadratic()
    method = make(name, model, lr=RATES.get(name, 8e-3), eps=1e-3)
    first = model.loss().item()
    for _ in range(60):
        method.step(model.loss)
    assert model.loss().item() < 0.95 * first
    assert method.steps == 60 and method.skipped == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", FIELD)
def test_replay_rebuilds_weights_and_state(name, carrier, dtype):
    options = {"carrier": carrier, "weight_decay": 0.1, "clip": 1.5, "lr": 1e-2}
    model, twin = Quadratic().to(dtype), Quadratic().to(dtype)
    method, start = make(name, model, **options), weights(model)
    replayed, before = make(name, twin, **options), None
    for _ in range(7):
        method.step(model.loss)
        before = decode(encode(method.last_record, before), before)
        replayed.replay(before)
        assert equal(weights(model), weights(twin))
    assert moved(model, start) and replayed.forward_passes == 0
    assert len(encode(method.last_record, before)) < 1000
    for each, its in ((method, model), (replayed, twin)):
        each.step(its.loss)
    assert equal(weights(model), weights(twin))


@pytest.mark.parametrize("name", FIELD)
def test_state_goes_on_bit_for_bit_from_every_step(name, tmp_path):
    dtype = torch.bfloat16
    options = {"carrier": "modules", "clip": 1.5, "lr": 1e-2}
    model = Quadratic().to(dtype)
    method, start, states = make(name, model, **options), weights(model), []
    for _ in range(4):
        torch.save((method.state_dict(), model.state_dict()), tmp_path / "state")
        states.append(torch.load(tmp_path / "state", weights_only=True))
        method.step(model.loss)
    assert moved(model, start)
    for number, (state, values) in enumerate(states):
        twin = Quadratic().to(dtype)
        twin.load_state_dict(values)
        resumed = make(name, twin, **options)
        resumed.load_state_dict(state)
        for _ in range(4 - number):
            resumed.step(twin.loss)
        assert equal(weights(model), weights(twin)), number


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", FIELD)
def test_a_learning_rate_of_zero_changes_no_bit(name, carrier, dtype):
    model = Quadratic().to(dtype)
    start = weights(model)
    method = make(name, model, carrier=carrier, weight_decay=0.1)
    method.step(model.loss)
    assert moved(model, start)
    for group in method.param_groups:
        group["lr"] = 0.0
    before = weights(model)
    if name == "dizo":
        method.step(model.loss)  # Its rescaling has no learning rate of the weights.
    else:
        for _ in range(3):
            method.step(model.loss)
    assert equal(weights(model), before)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", FIELD)
def test_a_closure_that_raises_changes_no_bit(name, carrier):
    model = Quadratic()
    method, start = make(name, model, carrier=carrier), weights(model)
    calls, last = [], math.inf

    def counted(rows):
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return model.of_rows(rows)

    closure = Rows(counted)

    method.step(closure)
    assert moved(model, start)
    before, last = weights(model), len(calls) + min(2, len(calls))
    with pytest.raises(KeyboardInterrupt):
        method.step(closure)
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", FIELD)
def test_frozen_weights_keep_their_bits(name):
    model = Quadratic()
    model.second.weight.requires_grad_(False)
    frozen, start = model.second.weight.detach().clone(), weights(model)
    method = make(name, model)
    for _ in range(4):
        method.step(model.loss)
    assert moved(model, start) and torch.equal(model.second.weight, frozen)


@pytest.mark.parametrize("name", FIELD)
def test_the_seed_decides(name):
    ends = []
    for seed in (3, 3, 4):
        model = Quadratic()
        method, start = make(name, model, seed=seed), weights(model)
        for _ in range(4):
            method.step(model.loss)
        assert moved(model, start)
        ends.append(weights(model))
    assert equal(ends[0], ends[1]) and not equal(ends[0], ends[2])


@pytest.mark.parametrize("name", FIELD)
def test_micro_batches_are_one_batch(name):
    """Rounds that come later run over all of them, at the step's end."""
    model, twin = Quadratic(), Quadratic()
    start = weights(model)
    whole, parts = make(name, model), make(name, twin)
    for _ in range(4):
        ours, its = Rows(model.of_columns), Rows(twin.of_columns)
        whole.step(0.5 * model.loss + 0.5 * ours)
        parts.estimate(twin.loss)
        parts.estimate(its)
        parts.apply()
    assert moved(model, start)
    assert parts.forward_passes == 2 * whole.forward_passes
    for a, b, c in zip(weights(model), weights(twin), start, strict=True):
        # Signs and choices may turn over on the last bits of a loss: most must be alike.
        close = torch.isclose(a, b, rtol=1e-3, atol=2e-2 * float((a - c).abs().max()))
        assert close.float().mean() > 0.7


@pytest.mark.parametrize("name", FIELD)
def test_losses_that_are_not_finite_are_skipped_and_then_stop_the_run(name):
    model = Quadratic()
    method, start = make(name, model, max_bad_steps=3), weights(model)
    method.step(model.loss)
    assert moved(model, start)
    before = weights(model)
    method.step(math.nan * model.loss)
    assert equal(weights(model), before) and method.skipped == 1
    record = decode(encode(method.last_record, None), None)
    assert record.skipped and math.isnan(record.losses[0])
    with pytest.raises(RunError, match="not finite for 3 steps in a row"):
        for _ in range(3):
            method.step(math.nan * model.loss)
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", FIELD)
def test_auto_is_right_or_refused(name):
    model = Quadratic()
    if not METHODS[name].gradient_units:
        with pytest.raises(InputError, match=r"lr: has no rule for auto, got 'auto'; give a numb"):
            make(name, model, lr="auto")
        return
    method, start = make(name, model, lr="auto"), weights(model)
    for _ in range(30):
        method.step(model.loss)
    assert moved(model, start) and method.rate is not None
    assert model.loss().item() < Quadratic().loss().item()


@pytest.mark.parametrize("name", FIELD)
def test_options_of_its_own_are_checked(name):
    with pytest.raises(InputError, match="no such option, got 'learning_rat'"):
        make(name, Quadratic(), learning_rat=1.0)
    for setting in settings_of(METHODS[name].Options):
        with pytest.raises(InputError, match=setting.name):
            make(name, Quadratic(), **{setting.name: object()})


@pytest.mark.parametrize("name", FIELD)
def test_it_says_how_many_forward_passes_a_step_takes(name):
    model = Quadratic()
    method = make(name, model, lr=1e-3)
    # The first step may look at more: an anchor, or whether the loss is noisy.
    method.step(model.loss)
    before = method.forward_passes
    method.step(model.loss)
    kind = type(method)
    assert method.forward_passes - before == method.forwards
    assert kind.forwards_on(method.estimator, asdict(method.own)) == method.forwards
