"""The methods' contract over every noise of the registry and every shape."""

from __future__ import annotations

import pytest
import torch
from test_methods import DTYPES, ZEROTH_ORDER, Quadratic, equal, make, start, weights

import zopeft
from zopeft.engine import LowRank, Rows, Subspace
from zopeft.errors import InputError
from zopeft.journal import Journal, header_of, rebuild
from zopeft.kernels import choice
from zopeft.methods import METHODS
from zopeft.noise import NOISES


def basis(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


def subspaces(mix):
    bases = {0: (basis(5, 3), basis(6, 4)), 1: (basis(4, 3), basis(6, 4))}
    return {"shapes": {i: Subspace(*pair, mix) for i, pair in bases.items()}}


DIRECTIONS = {
    **{name: {"noise": name, "rank": 2} for name in NOISES},
    "subspace": subspaces(0.0),
    "subspace mixed": subspaces(0.3),
    "rows": {"shapes": {0: Rows(torch.linspace(1, 3, 5)), 1: Rows(torch.linspace(3, 1, 4))}},
    "low_rank and rows": {"noise": "low_rank", "shapes": {1: Rows(torch.ones(4))}},
}


def test_these_directions_are_tested():
    assert sorted(NOISES) == ["binomial", "gaussian", "low_rank", "rademacher"]
    assert len(DIRECTIONS) == len(NOISES) + 4
    assert all(NOISES.about(name) for name in NOISES)


@pytest.fixture(params=["plain", "numba"])
def backend(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(choice, "_numba_works", lambda: request.param == "numba")
    return request.param


def within(model, kind):
    """Moves the weights to where a subspace alone can bring them to zero."""
    if kind == "subspace":
        shapes = DIRECTIONS[kind]["shapes"]
        for layer, shape in zip((model.first, model.second), shapes.values(), strict=True):
            left, right = shape.left @ shape.left.t(), shape.right @ shape.right.t()
            layer.weight.data = left @ layer.weight.data @ right
    return model


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_converges_on_a_quadratic(kind, carrier):
    model = within(Quadratic(), kind)
    method = make("mezo", model, lr=8e-3, carrier=carrier, **DIRECTIONS[kind])
    first = model.loss().item()
    for _ in range(150):
        method.step(model.loss)
    assert model.loss().item() < 0.45 * first


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_probe_noise_is_update_noise(kind, carrier, backend):
    model = Quadratic()
    method = make("mezo", model, lr=1.0, eps=0.01, carrier=carrier, **DIRECTIONS[kind])
    assert method.engine.kernels.name == backend
    method.estimate(model.loss)
    direction = method._pending.step.direction()
    with method.engine.perturbed(direction, 0.01):
        probed = model.loss()
    method.engine.update(direction, 0.01)
    torch.testing.assert_close(model.loss(), probed, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_a_step_with_lr_zero_changes_no_bit(kind, carrier, dtype, backend):
    model = Quadratic().to(dtype)
    method = make("mezo", model, lr=0.0, carrier=carrier, weight_decay=0.1, **DIRECTIONS[kind])
    before = weights(model)
    method.step(model.loss)
    assert equal(weights(model), before)


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_frozen_weights_stay_bit_for_bit(kind, carrier):
    model = Quadratic()
    model.norm.requires_grad_(False)
    method = make("mezo", model, carrier=carrier, **DIRECTIONS[kind])
    for _ in range(3):
        method.step(model.loss)
    assert torch.equal(model.norm.weight, Quadratic().norm.weight)
    assert not torch.equal(model.first.weight, Quadratic().first.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_same_seed_same_weights_other_seed_other_weights(kind, dtype):
    results = []
    for seed in (3, 3, 4):
        model = Quadratic().to(dtype)
        method = make("mezo", model, seed=seed, carrier="modules", **DIRECTIONS[kind])
        for _ in range(2):
            method.step(model.loss)
        results.append(weights(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("name", ZEROTH_ORDER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_base_and_journal_give_the_weights(kind, carrier, dtype, name, tmp_path):
    options = {"weight_decay": 0.01, "carrier": carrier, "clip": 1.0, **DIRECTIONS[kind]}
    model, twin = Quadratic().to(dtype), Quadratic().to(dtype)
    method, other = make(name, model, **options), make(name, twin, **options)
    with Journal.create(tmp_path / "j.bin", header_of(method)) as journal:
        for _ in range(3):
            method.step(model.loss)
            journal.append(method.last_record)
    assert not equal(weights(model), start(dtype))
    assert rebuild(tmp_path / "j.bin", other) == 3
    assert equal(weights(model), weights(twin))
    # And both go on alike.
    for each, its in ((method, model), (other, twin)):
        each.step(its.loss)
    assert equal(weights(model), weights(twin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("kind", sorted(DIRECTIONS))
def test_state_dict_round_trip_goes_on_bit_for_bit(kind, carrier, dtype, tmp_path):
    options = {"carrier": carrier, **DIRECTIONS[kind]}
    model, twin = Quadratic().to(dtype), Quadratic().to(dtype)
    method = make("mezo", model, **options)
    for _ in range(3):
        method.step(model.loss)
    assert not equal(weights(model), start(dtype))
    torch.save({"method": method.state_dict(), "model": model.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    twin.load_state_dict(state["model"])
    resumed = make("mezo", twin, lr=0.5, **options)
    resumed.load_state_dict(state["method"])
    saved = weights(model)
    for _ in range(2):
        method.step(model.loss)
        resumed.step(twin.loss)
    assert equal(weights(model), weights(twin))
    assert not equal(weights(model), saved)


def test_a_journal_of_other_directions_is_refused(tmp_path):
    runs = {
        "low_rank": {"noise": "low_rank", "rank": 2},
        "subspace": DIRECTIONS["subspace"],
    }
    for name, options in runs.items():
        method = make("mezo", Quadratic(), **options)
        Journal.create(tmp_path / name, header_of(method)).close()
        rebuild(tmp_path / name, make("mezo", Quadratic(), **options))
    for name, options, message in (
        ("low_rank", {}, "noise 'gaussian' instead of 'low_rank', rank 0 instead of 2"),
        ("low_rank", {"noise": "low_rank", "rank": 3}, "rank 3 instead of 2"),
        ("subspace", {}, "shapes '' instead of '"),
        ("subspace", DIRECTIONS["subspace mixed"], "shapes '.+' instead of '"),
    ):
        with pytest.raises(InputError, match=message):
            rebuild(tmp_path / name, make("mezo", Quadratic(), **options))


def test_the_header_of_a_journal_without_shapes_reads_as_isotropic():
    header = header_of(make("mezo", Quadratic()))
    fields = {n: v for n, v in vars(header).items() if n not in ("rank", "shapes")}
    type(header)(**fields).check(header, "j.bin")


def test_low_rank_noise_shapes_every_matrix_and_nothing_else():
    method = make("mezo", Quadratic(), noise="low_rank", rank=2)
    assert method.engine.noise.family == "gaussian"
    assert method.engine.shapes == {0: LowRank(2), 1: LowRank(2)}
    assert make("mezo", Quadratic()).engine.shapes == {}


@pytest.mark.parametrize("name", ZEROTH_ORDER)
def test_low_rank_noise_with_no_matrix_or_no_such_rank_is_refused(name):
    model = Quadratic()
    with pytest.raises(InputError, match="rank: must be between 1 and 64, got 65"):
        make(name, model, noise="low_rank", rank=65)
    model.first.requires_grad_(False)
    model.second.requires_grad_(False)
    kind = METHODS[name].__name__
    with pytest.raises(InputError, match=f"{kind} noise: finds no matrix among the blocks"):
        make(name, model, noise="low_rank")


def test_auto_lr_works_along_shaped_directions():
    model = torch.nn.Linear(20, 30, bias=False)
    method = zopeft.MeZO(zopeft.discover(model), eps=1e-3, noise="low_rank", rank=2)
    method.calibrate(lambda: model.weight.square().sum())
    # u' H u is 2 |u|^2, 2 d on average; |u|^2 scatters far more than with independent elements.
    assert method.rate.start["curvature"] == pytest.approx(2 * 600, rel=0.4)
