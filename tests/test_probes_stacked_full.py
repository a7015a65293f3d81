"""Both probes in one forward for full weights, where directions of low rank run beside them."""

from __future__ import annotations

import pytest
import torch
from test_probes_stacked import bits, dressed, forwards, padded, same_bits
from tiny_families import CONFIGS, build

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.engine.carrier import UnstackableError
from zopeft.errors import InputError
from zopeft.optim.directions import directions_of
from zopeft.probing.stacking import Stacking
from zopeft.tasks import task_loss

APART = {"gpt2", "opt"}
"""Positions are looked up once for all rows, so no copy has its own."""


def mezo(model, probes, **options):
    blocks = zopeft.discover(model)
    return zopeft.MeZO(
        blocks,
        lr=1e-3,
        eps=0.02,
        seed=5,
        noise="low_rank",
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


@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
@pytest.mark.parametrize("family", CONFIGS)
def test_one_forward_gives_the_losses_of_two(family, loss):
    model, batch = build(family), padded()
    apart = estimated(model, batch, "separate", loss)
    before, dress = bits(model), dressed(model)
    rows = forwards(model)
    stacked = estimated(model, batch, "stacked", loss)
    assert rows == ([6, 3, 3] if family in APART else [6])
    assert abs(apart[0] - apart[1]) > 1e-4
    torch.testing.assert_close(stacked, apart, rtol=1e-5, atol=0)
    assert same_bits(model, before)
    model._forward_pre_hooks.clear()
    assert dressed(model) == dress


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_many_directions_in_one_forward(sides, dtype):
    model, batch = build("llama").to(dtype), padded()
    losses = []
    for probes in ("separate", "stacked"):
        method = mezo(model, probes, directions=3, sides=sides)
        rows = forwards(model)
        method.estimate(zopeft.BatchLoss(model, batch))
        model._forward_pre_hooks.clear()
        losses.append(torch.tensor(method._pending.losses()).float())
    assert len(rows) == 1 and rows[0] == 3 * (6 if sides == "two" else 4)
    tolerance = {"rtol": 1e-5, "atol": 0.0} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0}
    torch.testing.assert_close(losses[1], losses[0], **tolerance)


def test_many_steps_are_those_of_two_forwards():
    runs = []
    for probes in ("separate", "stacked"):
        model = build("llama")
        method = mezo(model, probes)
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


def test_noise_in_the_weights_runs_apart():
    model = build("llama")
    assert Stacking(engine_of(model)).unstackable == ""
    assert (
        Stacking(engine_of(model, "gaussian")).unstackable == "the directions are not of low rank"
    )
    with pytest.raises(InputError, match="probes: cannot be stacked: the directions are not"):
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
