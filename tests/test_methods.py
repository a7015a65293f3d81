"""The contract that every zeroth-order method keeps, over every entry of the registry."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

import zopeft
from zopeft.errors import InputError, RunError
from zopeft.methods import METHODS
from zopeft.optim.clipping import RunningClip
from zopeft.optim.defaults import default_eps

ZEROTH_ORDER = ["mezo", "zo_finetuner"]
"""Those that take several directions a step in every way; `test_methods_contracts` has the
contracts of the whole field."""
WAYS = {
    "": {},
    "4 directions": {"directions": 4},
    "one side": {"sides": "one"},
    "4 directions, one side": {"directions": 4, "sides": "one"},
    "normalised": {"directions": 4, "sides": "one", "normalise": True},
}
ENTRIES = [f"{name} {way}".strip() for name in ZEROTH_ORDER for way in WAYS]
LINEAR = [entry for entry in ENTRIES if not entry.endswith("normalised")]
"""Those whose learning rate is in the usual units."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Quadratic(nn.Module):
    """Two layers whose loss is a quadratic around zero with unequal curvatures."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Linear(6, 5, bias=False)
        self.second = nn.Linear(6, 4, bias=False)
        self.norm = nn.LayerNorm(6)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))

    def loss(self):
        eye = torch.eye(6, dtype=self.first.weight.dtype)
        return (
            self.first(eye).float().square().sum()
            + 0.3 * self.second(eye).float().square().sum()
            + self.norm(eye).float().square().mean()
        )


def make(entry, model, **options):
    name, _, way = entry.partition(" ")
    blocks = zopeft.discover(model)
    options = {"lr": 1e-2, **WAYS[way], **options}
    if METHODS[name].order == 0:
        options.setdefault("eps", 1e-3)
    if METHODS[name].needs_finetuner:
        options["finetuner"] = zopeft.FineTuner.initial(blocks, seed=1)
    return METHODS[name](blocks, **options)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def start(dtype=torch.float32):
    """The weights that every model here begins with."""
    return weights(Quadratic().to(dtype))


def equal(a, b):
    return all(
        torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True)
    )


def test_the_registry_holds_these_methods():
    assert {"fo_adam", "fo_sgd", *ZEROTH_ORDER} < set(METHODS)
    assert (len(ENTRIES), len(LINEAR)) == (2 * 5, 2 * 4)


@pytest.mark.parametrize(
    ("name", "carrier"), [(n, "flat") for n in LINEAR] + [(n, "modules") for n in ZEROTH_ORDER]
)
def test_converges_on_a_quadratic(name, carrier):
    model = Quadratic()
    method = make(name, model, lr=8e-3, carrier=carrier)
    first = model.loss().item()
    for _ in range(150):
        method.step(model.loss)
    # Scales of untrained networks leave some blocks almost still.
    assert model.loss().item() < (0.4 if method.needs_finetuner else 0.25) * first
    assert method.steps == 150 and method.skipped == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", ENTRIES)
def test_a_step_with_lr_zero_changes_no_bit(name, carrier, dtype):
    model = Quadratic().to(dtype)
    method = make(name, model, lr=0.0, carrier=carrier, weight_decay=0.1)
    before = weights(model)
    for _ in range(3):
        method.step(model.loss)
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_closure_that_raises_changes_no_bit(name):
    model = Quadratic()
    method = make(name, model)
    before = weights(model)
    calls = []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return model.loss()

    with pytest.raises(KeyboardInterrupt):
        method.step(closure)
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_frozen_weights_stay_bit_for_bit(name):
    model = Quadratic()
    model.second.weight.requires_grad_(False)
    frozen = model.second.weight.detach().clone()
    method = make(name, model)
    for _ in range(3):
        method.step(model.loss)
    assert torch.equal(model.second.weight, frozen)
    assert not torch.equal(model.first.weight, Quadratic().first.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ENTRIES)
def test_same_seed_same_weights_other_seed_other_weights(name, dtype):
    results = []
    for seed in (3, 3, 4):
        model = Quadratic().to(dtype)
        method = make(name, model, seed=seed, weight_decay=0.01, carrier="modules")
        for _ in range(5):
            method.step(model.loss)
        results.append(weights(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", ENTRIES)
def test_replay_rebuilds_the_weights(name, carrier, dtype):
    model = Quadratic().to(dtype)
    method = make(name, model, weight_decay=0.01, carrier=carrier, clip=1.0)
    records = []
    for _ in range(6):
        method.step(model.loss)
        records.append(method.last_record)
    twin = Quadratic().to(dtype)
    assert not equal(weights(model), start(dtype))
    replayed = make(name, twin, weight_decay=0.01, carrier=carrier, clip=1.0)
    for record in records:
        replayed.replay(record)
    assert equal(weights(model), weights(twin))
    assert replayed.forward_passes == 0
    # And both go on alike, so the method's own state was rebuilt too.
    for each, its in ((method, model), (replayed, twin)):
        each.step(its.loss)
    assert equal(weights(model), weights(twin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", ENTRIES)
def test_state_dict_round_trip_goes_on_bit_for_bit(name, carrier, dtype, tmp_path):
    model = Quadratic().to(dtype)
    method = make(name, model, carrier=carrier, clip=1.0)
    for _ in range(4):
        method.step(model.loss)
    assert not equal(weights(model), start(dtype))
    torch.save({"method": method.state_dict(), "model": model.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    twin = Quadratic().to(dtype)
    twin.load_state_dict(state["model"])
    resumed = make(name, twin, lr=0.5, carrier=carrier, clip=1.0)
    resumed.load_state_dict(state["method"])
    assert (resumed.steps, resumed.forward_passes) == (4, method.forward_passes)
    saved = weights(model)
    for _ in range(3):
        method.step(model.loss)
        resumed.step(twin.loss)
    assert equal(weights(model), weights(twin))
    assert not equal(weights(model), saved)


@pytest.mark.parametrize("name", LINEAR)
def test_micro_batches_share_the_direction_and_average_their_losses(name):
    model, twin = Quadratic(), Quadratic()
    whole, parts = make(name, model), make(name, twin)
    whole.step(lambda: 0.5 * model.loss() + 0.5 * model.first.weight.sum())
    parts.estimate(twin.loss)
    parts.estimate(lambda: twin.first(torch.eye(6)).sum())
    parts.apply()
    assert whole.last_record.seed == parts.last_record.seed
    # Both have moved, and by far more than they are allowed to differ.
    far = [(a - b).abs().max() for a, b in zip(weights(model), start(), strict=True)]
    assert max(far) > 100 * 5e-5
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("name", ENTRIES)
def test_losses_that_are_not_finite_are_skipped_counted_and_then_stop_the_run(name):
    model = Quadratic()
    method = make(name, model, max_bad_steps=3)
    method.step(model.loss)
    before = weights(model)
    assert not equal(before, start())
    for _ in range(2):
        method.step(lambda: model.loss() * math.nan)
    method.step(lambda: model.loss() * 0)
    assert method.skipped == 2 and method.steps == 4
    with pytest.raises(RunError, match="loss: not finite for 3 steps in a row, got nan; lower"):
        for _ in range(3):
            method.step(lambda: model.loss() * math.nan)
    assert equal(weights(model), before)


@pytest.mark.parametrize("name", ZEROTH_ORDER)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": -1.0}, "lr: must be a number >= 0 or 'auto', got -1.0"),
        ({"lr": "fast"}, "lr: must be a number >= 0 or 'auto', got 'fast'"),
        ({"eps": 0.0}, "eps: out of range, must be > 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay: out of range"),
        ({"clip": -1.0}, "clip: out of range"),
        ({"noise": "gausian"}, "did you mean 'gaussian'"),
        ({"carrier": "boat"}, "unknown carrier, got 'boat'"),
        ({"directions": 0}, "directions: must be between 1 and 64, got 0"),
        ({"directions": 2.0}, "directions: must be a whole number, got '2.0'"),
        ({"sides": "both"}, "sides: must be 'two' or 'one', got 'both'"),
        ({"normalise": 1}, "normalise: must be true or false, got '1'"),
        ({"normalise": True, "sides": "one"}, "normalise: divides by the spread of several"),
        ({"normalise": True, "directions": 2}, "several one-sided directions; take sides one"),
    ],
)
def test_bad_arguments_are_refused(name, option, message):
    with pytest.raises(InputError, match=message):
        make(name, Quadratic(), **option)


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_unknown_arguments_are_refused(name):
    with pytest.raises(InputError, match="learning_rat"):
        make(name, Quadratic(), learning_rat=1.0)


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_parameters_instead_of_blocks_are_refused(name):
    options = {"finetuner": None} if METHODS[name].needs_finetuner else {}
    if options:
        options["finetuner"] = zopeft.FineTuner.initial(zopeft.discover(Quadratic()))
    with pytest.raises(
        InputError, match=r"takes blocks, got 'list'; pass zopeft.discover\(model\)"
    ):
        METHODS[name](list(Quadratic().parameters()), **options)


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_each_block_is_a_param_group_with_its_name(name):
    method = make(name, Quadratic(), weight_decay=0.1)
    names = [group["name"] for group in method.param_groups]
    assert names == ["first.weight", "second.weight", "norm.weight", "norm.bias"]
    decays = [group["weight_decay"] for group in method.param_groups]
    assert decays == [0.1, 0.1, 0.0, 0.0]


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_a_learning_rate_schedule_works(name):
    model = Quadratic()
    method = make(name, model, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(method, 1.0, 0.0, total_iters=4)
    rates = []
    for _ in range(4):
        method.step(model.loss)
        rates.append(method.last_record.lr[0])
        schedule.step()
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_a_record_of_another_step_is_refused(name):
    model = Quadratic()
    method = make(name, model)
    method.step(model.loss)
    with pytest.raises(InputError, match="journal: step 1 of this run has another address"):
        method.replay(method.last_record)


def test_auto_lr_refuses_a_model_whose_loss_is_not_finite():
    model = nn.Linear(2, 2, bias=False)
    method = zopeft.MeZO(zopeft.discover(model), lr="auto")
    with pytest.raises(RunError, match="not finite before training"):
        method.calibrate(lambda: torch.tensor(math.nan))


def test_default_eps_by_space():
    assert default_eps(zopeft.discover(Quadratic())) == 1e-3


def test_clipping_is_by_the_running_size_of_what_came_before():
    clip = RunningClip(2.0)
    assert clip.clipped(1e9) == 1e9
    clip.note(3.0)
    assert clip.clipped(7.0) == pytest.approx(6.0)
    assert clip.clipped(-7.0) == pytest.approx(-6.0)
    assert clip.clipped(5.0) == 5.0
    clip.note(-4.0)
    expected = 2 * ((0.95 * 0.05 * 9 + 0.05 * 16) / (1 - 0.95**2)) ** 0.5
    assert clip.clipped(100.0) == pytest.approx(expected)
    assert RunningClip(0.0).clipped(1e9) == 1e9


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (None, "must return the loss, one number, got 'NoneType'"),
        ("much", "must return the loss, one number, got 'str'"),
        (torch.ones(2), r"must return the loss, one number, got 'a tensor \[2\]'"),
    ],
)
def test_a_closure_returns_one_number(loss, told):
    weights = [nn.Linear(3, 2) for _ in range(3)]
    for one in weights[1:]:
        one.load_state_dict(weights[0].state_dict())
    given = (
        lambda model: model.weight.sum(),
        lambda model: float(model.weight.sum()),
        lambda model: model.weight.sum().reshape(1),
    )
    for model, closure in zip(weights, given, strict=True):
        before = model.weight.detach().clone()
        zopeft.MeZO(zopeft.discover(model), lr=1e-2).step(partial(closure, model))
        assert not torch.equal(model.weight, before)
    assert torch.equal(weights[0].weight, weights[1].weight)
    assert torch.equal(weights[0].weight, weights[2].weight)
    with pytest.raises(InputError, match=told):
        zopeft.MeZO(zopeft.discover(weights[0]), lr=1e-2).step(lambda: loss)
