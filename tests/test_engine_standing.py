"""Layers that keep what makes their twins: the same numbers, while it is the same layer."""

import pytest
import torch

import zopeft
from zopeft.engine import layer_forward
from zopeft.engine.direction import Direction
from zopeft.engine.engine import Engine
from zopeft.engine.standing import StandingLayer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Norm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return (self.weight * x.float().clamp(-1, 1)).to(x.dtype)


class Small(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.wide = Norm(12), torch.nn.Linear(12, 20)
        self.back = torch.nn.Linear(20, 12, bias=False)
        self.to(dtype)

    def forward(self, x):
        return self.back(self.wide(self.norm(x)))


@pytest.fixture
def made(monkeypatch):
    """The layers that stand, as they are made."""
    found = []
    real = layer_forward.standing_layer

    def noted(*given):
        found.append(real(*given))
        return found[-1]

    monkeypatch.setattr(layer_forward, "standing_layer", noted)
    return found


def engine_of(model, **given):
    pytest.importorskip("numba")
    return Engine(zopeft.discover(model), carrier="modules", backend="numba", **given)


def seen(engine, model, vector, step=0.02):
    x = torch.linspace(-2, 2, 36, dtype=model.norm.weight.dtype).view(3, 12)
    with torch.no_grad(), engine.perturbed(vector, step):
        return model(x)


def expected(model, vector, step=0.02):
    """What an engine says that has never run a probe."""
    return seen(engine_of(model), model, vector, step)


def scaled(seed, count=4):
    return Direction(seed, torch.linspace(0.5, 1.0 + seed, count))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_what_stands_shows_what_it_showed_at_first(dtype, rounding, made, monkeypatch):
    model = Small(dtype)
    engine = engine_of(model)
    engine.rounding = rounding
    calls = []
    real = StandingLayer.__call__
    monkeypatch.setattr(StandingLayer, "__call__", lambda *a: calls.append(1) or real(*a))
    for seed in (1, 2, 3):
        direction = scaled(seed) if seed > 1 else Direction(seed)
        for step in (0.02, -0.02):
            fresh = engine_of(model)
            fresh.rounding = rounding
            before = len(calls)
            wanted = seen(fresh, model, direction, step)
            assert len(calls) == before
            assert torch.equal(seen(engine, model, direction, step), wanted)
    assert len(calls) == 5 * 3 and all(made)


def test_weights_that_move_are_looked_up_again(made):
    model = Small()
    engine = engine_of(model)
    seen(engine, model, Direction(1))
    first = len(made)
    model.wide.weight.data = torch.full_like(model.wide.weight, 0.25)
    assert torch.equal(seen(engine, model, Direction(2)), expected(model, Direction(2)))
    model.back.weight = torch.nn.Parameter(torch.full_like(model.back.weight, 0.5))
    assert torch.equal(seen(engine, model, Direction(3)), expected(model, Direction(3)))
    assert first == 3 and model.back.weight[0, 0] == 0.5 and model.wide.weight[0, 0] == 0.25


def test_another_forward_is_run(made):
    model = Small()
    engine = engine_of(model)
    seen(engine, model, Direction(1))
    plain = model.wide.forward
    model.wide.forward = lambda x: 2.0 * plain(x)
    assert torch.equal(seen(engine, model, Direction(2)), expected(model, Direction(2)))


def test_another_rounding_is_taken_up():
    model = Small(torch.bfloat16)
    engine, fresh = engine_of(model), engine_of(model)
    found = []
    for rounding in ("stochastic", "nearest"):
        engine.rounding = rounding
        found.append(seen(engine, model, Direction(2)))
    fresh.rounding = "nearest"
    assert torch.equal(found[1], seen(fresh, model, Direction(2)))
    assert not torch.equal(*found)


def test_other_vectors_and_some_blocks_go_their_own_way():
    model = Small()
    engine = engine_of(model)
    whole, some = scaled(5), scaled(6).only([1])
    mixed = whole + 0.5 * scaled(7)
    for vector in (whole, some, mixed, whole, mixed, some, some, whole):
        assert torch.equal(seen(engine, model, vector), expected(model, vector))


def test_a_gradient_is_taken_through_what_stood():
    model = Small()
    engine = engine_of(model)
    x = torch.linspace(-2, 2, 36).view(3, 12)
    seen(engine, model, Direction(1))
    with engine.perturbed(Direction(2), 0.02):
        model(x).square().sum().backward()
    own = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with engine_of(model).perturbed(Direction(2), 0.02):
        model(x).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(own, model.parameters(), strict=True))
    assert all(bool(gradient.any()) for gradient in own)


def test_its_own_weights_are_back_when_a_layer_raises():
    model = Small()
    engine = engine_of(model)
    own = {name: (p, p.clone()) for name, p in model.named_parameters()}
    seen(engine, model, Direction(1))
    with pytest.raises(RuntimeError), torch.no_grad(), engine.perturbed(Direction(2), 0.02):
        model(torch.ones(3, 5))
    for name, parameter in model.named_parameters():
        assert parameter is own[name][0] and torch.equal(parameter, own[name][1])


def test_memory_that_is_made_in_inference_mode_serves_in_others():
    model = Small()
    engine = engine_of(model)
    x = torch.linspace(-2, 2, 36).view(3, 12)
    mixed = scaled(5) + 0.5 * scaled(7)
    for vector in (Direction(1), Direction(2), mixed):
        with torch.inference_mode(), engine.perturbed(vector, 0.02):
            model(x)
    for vector in (Direction(3), mixed):
        assert torch.equal(seen(engine, model, vector), expected(model, vector))


def test_a_norm_is_tried_anew_for_others_of_its_vectors():
    model = torch.nn.Sequential(torch.nn.LayerNorm(12), torch.nn.Linear(12, 4)).to(torch.bfloat16)
    x = torch.linspace(-2, 2, 36, dtype=torch.bfloat16).view(3, 12)

    def shown(engine, vector):
        with torch.no_grad(), engine.perturbed(vector, 0.02):
            return model(x)

    engine = engine_of(model)
    bias = [n for n, block in enumerate(engine.blocks) if block.name == "0.bias"]
    assert len(bias) == 1
    for vector in (Direction(1), Direction(1).only(bias), Direction(2)):
        assert torch.equal(shown(engine, vector), shown(engine_of(model), vector))
