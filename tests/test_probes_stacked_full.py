"""Both probes in one forward for full weights: low rank beside them, or twins of one draw."""

from __future__ import annotations

import pytest
import torch
from test_probes_stacked import bits, dressed, forwards, padded, same_bits
from tiny_families import CONFIGS, build

import zopeft
from zopeft.engine import Direction, Engine, layers
from zopeft.engine.carrier import UnstackableError
from zopeft.engine.shapes import Rows
from zopeft.engine.standing import StandingLayer
from zopeft.engine.subspace import Subspace
from zopeft.errors import InputError
from zopeft.kernels.form import Form
from zopeft.optim.directions import directions_of
from zopeft.probing.stacking import Stacking
from zopeft.tasks import task_loss

APART = {"gpt2", "opt"}
"""Positions are looked up once for all rows, so no copy has its own."""


NOISES = ["low_rank", "gaussian", "rademacher"]


def mezo(model, probes, noise="low_rank", **options):
    blocks = zopeft.discover(model)
    return zopeft.MeZO(
        blocks,
        lr=1e-3,
        eps=0.02,
        seed=5,
        noise=noise,
        rank=2,
        carrier="modules",
        probes=probes,
        **options,
    )


def engine_of(model, noise="low_rank"):
    blocks = zopeft.discover(model)
    found = directions_of("test", blocks, noise, 2)
    return Engine(blocks, found.family, carrier="modules", shapes=found.shapes)


def estimated(model, batch, probes, loss, **options):
    method = mezo(model, probes, **options)
    closure = zopeft.BatchLoss(model, batch) if loss is None else None
    method.estimate(closure or zopeft.BatchLoss(model, batch, loss))
    return torch.tensor(method._pending.losses())


def test_every_family_is_there():
    assert len(CONFIGS) == 4 and set(CONFIGS) > APART


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
@pytest.mark.parametrize("family", CONFIGS)
def test_one_forward_gives_the_losses_of_two(family, loss, noise):
    model, batch = build(family), padded()
    apart = estimated(model, batch, "separate", loss, noise=noise)
    before, dress = bits(model), dressed(model)
    rows = forwards(model)
    stacked = estimated(model, batch, "stacked", loss, noise=noise)
    assert rows == ([6, 3, 3] if family in APART else [6])
    assert abs(apart[0] - apart[1]) > 1e-4
    torch.testing.assert_close(stacked, apart, rtol=1e-5, atol=0)
    assert same_bits(model, before)
    model._forward_pre_hooks.clear()
    assert dressed(model) == dress


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sides", ["two", "one"])
def test_many_directions_in_one_forward(sides, noise, dtype):
    model, batch = build("llama").to(dtype), padded()
    losses = []
    for probes in ("separate", "stacked"):
        method = mezo(model, probes, noise, directions=3, sides=sides)
        rows = forwards(model)
        method.estimate(zopeft.BatchLoss(model, batch))
        model._forward_pre_hooks.clear()
        losses.append(torch.tensor(method._pending.losses()).float())
    assert len(rows) == 1 and rows[0] == 3 * (6 if sides == "two" else 4)
    tolerance = {"rtol": 1e-5, "atol": 0.0} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0}
    torch.testing.assert_close(losses[1], losses[0], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("width", [None, 256], ids=["whole", "in parts"])
def test_one_draw_shows_both_probes_what_each_is_shown_alone(dtype, rounding, width, monkeypatch):
    if width is not None:
        monkeypatch.setattr(layers, "CHUNK", width)
    model = build("llama").to(dtype)
    layer, inputs = model.model.layers[1].mlp.up_proj, torch.randn(4, 8, 32, dtype=dtype)
    engine = engine_of(model, "gaussian")
    engine.rounding = rounding
    drawn, kernels = [], engine.kernels
    both, shift_both = StandingLayer.both, kernels.shift_both
    monkeypatch.setattr(StandingLayer, "both", lambda *a: drawn.append("stands") or both(*a))
    monkeypatch.setattr(kernels, "shift_both", lambda *a: drawn.append("parts") or shift_both(*a))
    scales = torch.linspace(0.5, 2.0, len(engine.blocks))
    for seed in (1, 2):
        probes = [(direction := Direction(seed, scales), 0.02), (direction, -0.02)]
        alone = []
        for probe, part in zip(probes, inputs.chunk(2), strict=True):
            with torch.no_grad(), engine.perturbed(*probe):
                alone.append(layer(part))
        with torch.no_grad(), Stacking(engine).shown(probes):
            model(input_ids=torch.zeros(4, 8, dtype=torch.long))
            found = layer(inputs)
        assert torch.equal(found, torch.cat(alone)) and not torch.equal(*alone)
    assert set(drawn) == {"stands" if width is None else "parts"}


def shaped(model, kind):
    """An engine whose up projection has a shape with noise in it."""
    blocks = zopeft.discover(model)
    index = next(n for n, b in enumerate(blocks) if b.name.endswith("layers.1.mlp.up_proj.weight"))
    rows, columns = blocks[index].shape
    generator = torch.Generator().manual_seed(3)
    if kind == "rows":
        shape = Rows(torch.rand(rows, generator=generator) + 0.5)
    else:
        sides = (
            torch.linalg.qr(torch.randn(n, 4, generator=generator))[0] for n in (rows, columns)
        )
        shape = Subspace(*sides, mix=0.4)
    return Engine(blocks, carrier="modules", backend="numba", shapes={index: shape}), index


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rows", "subspace"])
@pytest.mark.parametrize("width", [None, 256], ids=["whole", "in parts"])
def test_one_draw_serves_both_probes_of_a_shape(kind, dtype, width, monkeypatch):
    if width is not None:
        monkeypatch.setattr(layers, "CHUNK", width)
    model = build("llama").to(dtype)
    layer, inputs = model.model.layers[1].mlp.up_proj, torch.randn(4, 8, 32, dtype=dtype)
    engine, index = shaped(model, kind)
    stands, parts, both = [], [], StandingLayer.both
    rows_both, alone = engine.kernels.shift_rows_both, engine.kernels.shift_matrix
    monkeypatch.setattr(
        StandingLayer, "both", lambda s, *a: stands.append(s._module is layer) or both(s, *a)
    )
    monkeypatch.setattr(
        engine.kernels, "shift_rows_both", lambda *a: parts.append(True) or rows_both(*a)
    )
    for seed, scales in ((1, None), (2, torch.linspace(0.5, 2.0, len(engine.blocks)))):
        probes = [(direction := Direction(seed, scales), 0.02), (direction, -0.02)]
        form, weight = engine.forms.of(index, direction, inputs.device), layer.weight.detach()
        key = (seed, engine.blocks[index].address, weight, slice(0, len(weight)))
        expected = []
        for (_, step), part in zip(probes, inputs.chunk(2), strict=True):
            twin = torch.empty_like(weight)
            alone(*key, step, Form(form.scale, None), twin)
            output = torch.nn.functional.linear(part, twin).float()
            if form.factors is not None:
                left, right = form.factors
                output = output + step * (part.float() @ right.t() @ left.t())
            expected.append(output)
        with torch.no_grad(), Stacking(engine).shown(probes):
            model(input_ids=torch.zeros(4, 8, dtype=torch.long))
            found = layer(inputs).float()
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(found, torch.cat(expected), rtol=tolerance, atol=tolerance)
        assert float((expected[0] - expected[1]).abs().max()) > 100 * 1e-5
    assert any(stands) == (kind == "subspace" and width is None)
    assert bool(parts) == (width is not None)


def test_runs_of_before_go_on_apart():
    model = build("llama")
    method = mezo(model, "auto", "gaussian")
    rows = forwards(model)
    method.step(zopeft.BatchLoss(model, padded()))
    state = method.state_dict()
    del state["zopeft"]["probing"]["twins_together"]
    method.load_state_dict(state)
    method.step(zopeft.BatchLoss(model, padded()))
    assert rows == [6, 3, 3]


@pytest.mark.parametrize("noise", NOISES)
def test_many_steps_are_those_of_two_forwards(noise):
    runs = []
    for probes in ("separate", "stacked"):
        model = build("llama")
        method = mezo(model, probes, noise)
        runs.append([float(method.step(zopeft.BatchLoss(model, padded()))) for _ in range(12)])
        assert not same_bits(model, bits(build("llama")))
    assert runs[0][0] != runs[0][-1]
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


def test_an_exception_inside_changes_no_bit():
    model = build("llama")
    engine, before, dress = engine_of(model), bits(model), dressed(model)
    with pytest.raises(ZeroDivisionError), Stacking(engine).shown([(Direction(1), 0.1)] * 2):
        raise ZeroDivisionError
    assert same_bits(model, before) and dressed(model) == dress


def test_a_layer_that_does_not_see_the_rows_is_refused():
    model = build("llama")
    engine, ids = engine_of(model), torch.zeros(6, 8, dtype=torch.long)
    layer = model.get_submodule("model.layers.0.input_layernorm")
    with torch.no_grad(), Stacking(engine).shown([(Direction(1), 0.1), (Direction(1), -0.1)]):
        model(input_ids=ids)
        for shape in ((3, 8, 32), (1, 48, 32), (8, 6, 32), (24, 32)):
            with pytest.raises(UnstackableError, match="row by row"):
                layer(torch.zeros(shape))
        with pytest.raises(UnstackableError, match="one copy"):
            model.lm_head(torch.zeros(1, 5, 32))
        with pytest.raises(UnstackableError, match="row by row"):
            model(input_ids=ids[:1])


def test_noise_in_the_weights_runs_apart_where_each_probe_draws_its_own():
    model = build("llama")
    assert Stacking(engine_of(model)).unstackable == ""
    assert Stacking(engine_of(model, "gaussian")).unstackable == ""
    plain = Engine(zopeft.discover(model), carrier="modules", backend="plain")
    assert Stacking(plain).unstackable == "the directions are not of low rank"


def test_a_matrix_of_another_layer_runs_apart():
    model = build("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight)
    reason = "a trained matrix is not that of a linear layer"
    assert Stacking(engine_of(model, "gaussian")).unstackable == reason
    with pytest.raises(InputError, match=f"probes: cannot be stacked: {reason}"):
        zopeft.MeZO(zopeft.discover(model), carrier="modules", probes="stacked")


def test_a_small_model_is_not_held_flat_where_probes_are_to_be_stacked():
    model = build("llama")
    blocks = zopeft.discover(model)
    method = zopeft.MeZO(blocks, lr=1e-3, noise="low_rank", probes="stacked")
    rows = forwards(model)
    method.step(zopeft.BatchLoss(model, padded()))
    assert rows == [6]
    assert zopeft.MeZO(blocks, lr=1e-3, noise="low_rank").probing.stacking.unstackable


def test_weights_that_a_parent_reads_run_apart(monkeypatch):
    model = build("llama")
    mlp = model.model.layers[0].mlp

    def forward(hidden):
        inner = mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)
        return torch.nn.functional.linear(inner, mlp.down_proj.weight)

    monkeypatch.setattr(mlp, "forward", forward)
    with pytest.raises(UnstackableError, match="outside of their layer"):
        closure = zopeft.BatchLoss(model, padded())
        with torch.no_grad(), Stacking(engine_of(model)).shown([(Direction(1), 0.1)] * 2):
            closure.stacked(2)
    apart = estimated(model, padded(), "separate", None)
    assert torch.equal(estimated(model, padded(), "stacked", None), apart)
