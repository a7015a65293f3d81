"""Several directions a step, on one side or both: formulas, forwards, rounding, the rate."""

from __future__ import annotations

import math

import pytest
import torch
from test_meta_state import BEND, moving
from test_methods import Quadratic, make, weights
from test_probes_shared import counted, four_layers, loss_of
from test_probes_stacked import adapted, forwards, padded
from torch import nn

import zopeft
from zopeft.blocks import keep_trainable
from zopeft.engine import Direction, Rows, Subspace
from zopeft.kernels import plain
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import Noise, direction_seed, step_seed
from zopeft.noise.dither import UPDATED, dither_run
from zopeft.optim.estimator import Estimator
from zopeft.optim.rate import RunningRate
from zopeft.optim.record import StepRecord

O, I = 9, 7  # noqa: E741
ESTIMATORS = {
    "pair": {},
    "three pairs": {"directions": 3},
    "one side": {"sides": "one"},
    "three, one side": {"directions": 3, "sides": "one"},
    "normalised": {"directions": 3, "sides": "one", "normalise": True},
}


def layer(dtype=torch.float32):
    model = nn.Linear(I, O, bias=False)
    generator = torch.Generator().manual_seed(0)
    model.weight.data = torch.randn(O, I, generator=generator).to(dtype)
    return model


def loss_at(weight):
    """A quadratic with unequal curvatures and a slope, in double precision."""
    flat = weight.detach().double().flatten()
    curvature = torch.linspace(0.2, 2.0, O * I, dtype=torch.float64)
    return 0.5 * (curvature * flat.square()).sum() + flat.sum()


def along(seed, **options):
    """The direction of a key, as the engine has it."""
    model = layer()
    model.weight.data.zero_()
    zopeft.MeZO(zopeft.discover(model), **options).engine.update(Direction(seed), 1.0)
    return model.weight.detach().double()


def test_keys_of_directions_are_those_of_no_step():
    steps = {step_seed(3, step) for step in range(500)}
    others = [direction_seed(seed, number) for seed in steps for number in range(1, 9)]
    assert len(steps.union(others)) == 500 * 9
    assert direction_seed(12345, 0) == 12345
    # Of a fixed run, so that journals can be replayed by later versions.
    assert direction_seed(step_seed(0, 0), 1) == 8578416303671939540


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_step_is_its_formula(name, carrier):
    model, eps, lr, decay = layer(), 1e-2, 1e-2, 0.3
    options = ESTIMATORS[name]
    method = zopeft.MeZO(
        zopeft.discover(model),
        lr=lr,
        eps=eps,
        weight_decay=decay,
        seed=4,
        carrier=carrier,
        **options,
    )
    before = model.weight.detach().double()
    seeds = [direction_seed(step_seed(4, 0), k) for k in range(options.get("directions", 1))]
    us = [along(seed) for seed in seeds]
    losses = torch.stack([loss_at(before + eps * u) for u in us])
    if options.get("sides") == "one":
        grads = (losses - loss_at(before)) / eps
    else:
        grads = (losses - torch.stack([loss_at(before - eps * u) for u in us])) / (2 * eps)
    if options.get("normalise"):
        grads = (losses - loss_at(before)) / losses.std(unbiased=False)
    method.step(lambda: loss_at(model(torch.eye(I)).t()))
    found = method.last_record.projected_grads
    assert found == pytest.approx(grads.tolist(), rel=1e-3)
    expected = (1 - lr * decay) * before - lr / len(us) * sum(
        g * u for g, u in zip(found, us, strict=True)
    )
    assert float((expected - before).abs().max()) > 1e-3
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=0, atol=1e-6)
    assert method.forward_passes == method.estimator.forwards


@pytest.mark.parametrize("normalise", [False, True])
def test_losses_that_do_not_differ_move_nothing(normalise):
    model = layer()
    options = {"directions": 4, "sides": "one", "normalise": normalise}
    method = zopeft.MeZO(zopeft.discover(model), lr=0.1, **options)
    before = model.weight.detach().clone()
    for _ in range(2):
        method.step(lambda: torch.tensor(2.5))
    assert torch.equal(model.weight, before) and method.skipped == 0
    assert method.last_record.projected_grads == (0.0,) * 4


def test_each_projected_gradient_is_clipped_and_all_of_them_are_noted():
    model = layer()
    method = zopeft.MeZO(zopeft.discover(model), lr=0.0, clip=0.5, directions=3)
    method.step(lambda: loss_at(model.weight))
    raw = method.estimator.differences(method.last_record.losses, None, method.eps)
    assert method.last_record.projected_grads == tuple(raw)
    twin = zopeft.MeZO(zopeft.discover(layer()), clip=0.5).clip
    for grad in raw:
        twin.note(grad)
    assert method.clip.state_dict() == twin.state_dict()
    method.step(lambda: 1e3 * loss_at(model.weight))
    limit = abs(twin.clipped(1e9))
    assert [abs(g) for g in method.last_record.projected_grads] == [limit] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gaussian", "rademacher"])
def test_16_bit_weights_are_rounded_once_a_step(dtype, family):
    model = layer(dtype)
    options = {"directions": 4, "noise": family, "carrier": "modules", "weight_decay": 0.5}
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-2, **options)
    kernels, address = PlainKernels(Noise(family)), method.blocks[0].address
    exact, decay = model.weight.detach().float().flatten(), 1.0 - 1e-2 * 0.5
    method.estimate(lambda: loss_at(model(torch.eye(I, dtype=dtype)).t()))
    seeds = [direction.seed for direction in method._pending.step.directions]
    method.apply()
    for seed, grad in zip(seeds, method.last_record.projected_grads, strict=True):
        kernels.update(seed, address, exact, -1e-2 * grad / 4, decay, None)
        decay = 1.0
    words = dither_run(seeds[0] ^ UPDATED, address, 0, O * I)
    expected = plain.stochastic_round(exact, words, dtype).view(O, I)
    assert torch.equal(model.weight.view(torch.int16), expected.view(torch.int16))


SHAPES = {
    "low_rank": {"noise": "low_rank", "rank": 2},
    "subspace": {"shapes": {0: Subspace(torch.eye(O, 3), torch.eye(I, 2), 0.0)}},
    "mixed": {"shapes": {0: Subspace(torch.eye(O, 3), torch.eye(I, 2), 0.3)}},
    "rows": {"shapes": {0: Rows(torch.linspace(1, 3, O))}},
}


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", SHAPES)
def test_shaped_directions_are_summed_too(kind, carrier):
    model = layer()
    method = zopeft.MeZO(
        zopeft.discover(model),
        lr=1e-2,
        directions=3,
        carrier=carrier,
        weight_decay=0.3,
        **SHAPES[kind],
    )
    before = model.weight.detach().double()
    method.step(lambda: loss_at(model(torch.eye(I)).t()))
    record = method.last_record
    expected = (1 - 1e-2 * 0.3) * before
    for number, grad in enumerate(record.projected_grads):
        u = along(direction_seed(record.seed, number), **SHAPES[kind])
        assert float(u.abs().max()) > 0.1
        expected = expected - 1e-2 / 3 * grad * u
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SHAPES)
def test_shaped_directions_leave_the_bits_that_their_record_says(kind, dtype):
    model, twin = layer(dtype), layer(dtype)
    options = {"lr": 1e-2, "directions": 3, "carrier": "modules", **SHAPES[kind]}
    method = zopeft.MeZO(zopeft.discover(model), **options)
    replayed = zopeft.MeZO(zopeft.discover(twin), **options)
    for _ in range(3):
        method.step(lambda: loss_at(model(torch.eye(I, dtype=dtype)).t()))
        replayed.replay(method.last_record)
    assert torch.equal(model.weight, twin.weight) and not torch.equal(
        twin.weight, layer(dtype).weight
    )


@pytest.mark.parametrize("way", ["three pairs", "three, one side"])
@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_one_forward_gives_the_losses_of_all(adapter, way):
    model = adapted("llama", adapter)
    closure, found, rows = zopeft.BatchLoss(model, padded()), {}, forwards(model)
    for probes in ("separate", "stacked"):
        options = {"probes": probes, "eps": 0.05, "seed": 5, "lr": 1e-3, **ESTIMATORS[way]}
        method = zopeft.MeZO(zopeft.discover(model), **options)
        method.estimate(closure)
        found[probes] = torch.tensor(method._pending.losses())
        assert method.forward_passes == method.estimator.forwards
    count = method.estimator.forwards
    assert rows == [3] * count + [3 * count]
    torch.testing.assert_close(found["stacked"], found["separate"], rtol=1e-5, atol=0)
    assert float(found["stacked"].std()) > 1e-4


@pytest.mark.parametrize(
    ("most", "rows"), [(23, [3] * 4), (24, [6, 6]), (47, [6, 6]), (48, [12]), (36, [6, 6])]
)
def test_auto_shares_probes_out_to_forwards_of_at_most_two_large_batches(most, rows):
    """The batch has 24 tokens in 3 rows; one side of three directions is 4 probes."""
    model = adapted()
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, **ESTIMATORS["three, one side"])
    method.probing.most_tokens = most
    seen = forwards(model)
    method.estimate(zopeft.BatchLoss(model, padded()))
    assert seen == rows and method.forward_passes == 4


@pytest.mark.parametrize(("way", "probes"), [("three pairs", 6), ("three, one side", 4)])
def test_lower_layers_run_once_for_all_probes(way, probes):
    ends = []
    for sharing in (True, False):
        model = four_layers("llama")
        keep_trainable(model, r"^model.layers.3.")
        method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, seed=4, **ESTIMATORS[way])
        if not sharing:
            method.probing.sharing = None
        calls = counted(model.model.layers)
        method.estimate(lambda: loss_of(model))  # noqa: B023
        once = 1 if sharing else probes
        assert calls == [once] * 3 + [probes] and method.forward_passes == probes
        ends.append(method._pending.losses())
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("way", "steps", "passes"),
    [("pair", 20, 3), ("three pairs", 20, 7), ("three, one side", 20, 5), ("normalised", 20, 5)],
)
def test_auto_looks_at_the_curvature_with_one_more_forward(way, steps, passes):
    model, calls = layer(), []

    def closure():
        calls.append(1)
        return loss_at(model.weight)

    method = zopeft.MeZO(zopeft.discover(model), lr="auto", eps=0.1, **ESTIMATORS[way])
    looks = []
    for _ in range(steps):
        before = len(calls)
        method.step(closure)
        looked = len(calls) - before == passes
        looks.append(looked)
        assert len(calls) - before == passes - (0 if looked else 1)
        assert (method.estimator.bend(method.last_record) is not None) == looked
        if looked:
            assert method.estimator.bend(method.last_record) == pytest.approx(70, rel=0.7)
    assert method.forward_passes == len(calls)
    assert looks[0] and 3 <= sum(looks) < steps
    count = method.estimator.directions
    assert (f", times {count} directions" in method.lr_reason) == (count > 1)


def test_micro_batches_look_alike_and_are_averaged():
    model, twin = layer(), layer()
    options = {"lr": "auto", "eps": 0.05, **ESTIMATORS["three, one side"]}
    whole, parts = (zopeft.MeZO(zopeft.discover(m), **options) for m in (model, twin))
    for method, its in ((whole, model), (parts, twin)):
        method.calibrate(lambda its=its: loss_at(its.weight))
    whole.step(lambda: loss_at(model.weight) + 1.0)
    parts.estimate(lambda: loss_at(twin.weight))
    parts.estimate(lambda: loss_at(twin.weight) + 2.0)
    parts.apply()
    a, b = whole.last_record, parts.last_record
    assert (a.centre, a.mirror) == (pytest.approx(b.centre), pytest.approx(b.mirror))
    assert a.losses == pytest.approx(b.losses) and len(a.losses) == 3
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-5, atol=1e-6)
    assert float((model.weight - layer().weight).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_what_a_fine_tuner_is_told_is_the_mean_over_directions(count, sides):
    estimator = Estimator(count, sides)
    grads = [0.5 * (k + 1) * (-1) ** k for k in range(count)]
    pairs = [(3.0 + 0.1 * g + 0.02, 3.0 - 0.1 * g + 0.02) for g in grads]
    losses = [pair[0] for pair in pairs] if sides == "one" else [x for pair in pairs for x in pair]
    made = (0, 0, tuple(losses), tuple(grads), (0.1,), 0.1, 0.0)
    mirror = pairs[0][1] if sides == "one" else None
    record = StepRecord(*made, centre=3.0, mirror=mirror)
    plus, minus = estimator.typical_pair(record)
    differences = estimator.differences(losses, 3.0, 0.1)
    energy = sum(g * g for g in differences) / count
    assert plus - minus == pytest.approx(2 * 0.1 * math.sqrt(energy))
    assert plus + minus - 2 * 3.0 == pytest.approx(0.04)
    assert estimator.pair(record) == pytest.approx(pairs[0])
    assert estimator.bend(record) == pytest.approx(0.04 / 0.01)
    line = StepRecord(0, 0, (3.5,), (5.0,), (0.1,), 0.1, 0.0, centre=3.0)
    assert Estimator(1, "one").pair(line) == (3.5, 2.5)


def test_a_record_with_other_directions_is_refused():
    method = make("mezo 4 directions", Quadratic())
    other = make("mezo", Quadratic())
    model = Quadratic()
    method.step(model.loss)
    before = weights(model)
    with pytest.raises(zopeft.errors.InputError, match="journal: this run has 1 directions a step"):
        other.replay(method.last_record)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_the_rate_is_k_small_steps_and_leaves_out_one_sided_curvature(count, sides):
    estimator, eps = Estimator(count, sides), 0.02
    rate = RunningRate(100.0, 4.0, 1.0, 0.2, eps=eps, estimator=estimator)
    energy = 4.0 + (1.0 if sides == "one" else 0.0)
    pure = 4.0 / energy
    assert rate.lr == pytest.approx(count * 0.2 * pure / 100.0)
    far = RunningRate(1e-6, 4.0, 1e-3, 0.2, eps=eps, estimator=estimator)
    assert far.lr == pytest.approx(count * 1e-3 / math.sqrt(count * 4.0), rel=1e-6)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_the_share_is_seen_whatever_the_directions(count, sides):
    """The loss falls by K (r A - r^2 G h / 2) a step, with A a share of the pure energy."""
    estimator, eps, curvature, r, true = Estimator(count, sides), 1.0, 4.0, 0.01, 0.3
    half = math.sqrt(5.0)
    bias = eps * curvature / 2 if sides == "one" else 0.0
    rate = RunningRate(curvature, 5.0, 1e9, eps=eps, estimator=estimator)
    energy = 5.0 + bias**2
    fall = count * (r * true * 5.0 - r**2 / 2 * energy * curvature)
    for step in range(400):
        centre, sign = 9.0 - fall * step, (-1) ** step
        own = [half * sign * (-1) ** k + bias for k in range(count)]
        bend = curvature * eps**2 / 2
        plus = [centre + eps * (g - bias) + bend for g in own]
        losses = plus
        if sides == "two":
            losses = [x for p in plus for x in (p, 2 * (centre + bend) - p)]
        looked = rate.due()
        at_weights = centre if looked or sides == "one" else None
        mirror = 2 * (centre + bend) - plus[0] if looked and sides == "one" else None
        made = (step, 0, tuple(losses), tuple(own), (count * r,), eps, 0.0)
        rate.note(StepRecord(*made, centre=at_weights, mirror=mirror))
    assert rate.share == pytest.approx(true, rel=0.05)


def test_a_normalised_step_is_at_most_twice_as_long_as_usual():
    rate = RunningRate(100.0, 4.0, 1e9, 0.2, estimator=Estimator(4, "one", True))
    usual = math.sqrt(4.0 * 3 / 4)
    assert rate.first == pytest.approx(4 * 0.2 / 100.0 * usual)
    assert rate.factor_at(usual) == rate.factor_at(9.0) == pytest.approx(1.0)
    assert rate.factor_at(usual / 4) == pytest.approx(0.5)
    assert rate.factor_at(0.0) == 0.0


@pytest.mark.parametrize("way", ["three pairs", "three, one side"])
def test_a_fine_tuner_that_reads_the_bend_is_told_it_every_step(way):
    model = four_layers("llama")
    keep_trainable(model, r"^model.layers.3.")
    blocks = zopeft.discover(model)
    learned = moving(blocks, BEND)
    method = zopeft.ZOFineTuner(blocks, learned, lr=1e-3, eps=1e-2, **ESTIMATORS[way])
    for _ in range(2):
        method.step(lambda: loss_of(model))
        bend = method.estimator.bend(method.last_record)
        assert bend is not None and math.isfinite(method.course.reading().bend)
    assert method.forward_passes == 2 * (method.estimator.forwards + 1)
