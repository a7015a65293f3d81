"""PertNNs, features and normalisation: the paper's equations, batched and differentiable."""

import math

import pytest
import torch
from test_blocks_families import tiny
from torch import nn

from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.finetuner import FEATURES, PAPER_FEATURES, FineTuner, PertNN, normalise


@pytest.fixture(scope="module")
def blocks():
    return discover(tiny("llama"))


@pytest.fixture
def finetuner(blocks):
    return FineTuner.initial(blocks, seed=3, inputs="raw")


def statistics(blocks):
    mean = torch.stack([b.parameter.detach().mean() for b in blocks])
    return mean, torch.stack([b.parameter.detach().var() for b in blocks])


def test_stacked_networks_equal_one_network_a_group():
    nets = PertNN(4, 5, 64, torch.Generator().manual_seed(0))
    x, group = torch.randn(7, 5), torch.tensor([3, 0, 0, 2, 1, 3, 2])
    wanted = []
    for row, g in zip(x, group, strict=True):
        first, last = nn.Linear(5, 64), nn.Linear(64, 1)
        with torch.no_grad():
            first.weight.copy_(nets.w1[g])
            first.bias.copy_(nets.b1[g])
            last.weight.copy_(nets.w2[g][None])
            last.bias.copy_(nets.b2[g][None])
        wanted.append(last(torch.tanh(first(row))).abs())
    torch.testing.assert_close(nets(x, group), torch.cat(wanted))


def test_the_start_is_that_of_linear_and_seeded(blocks, finetuner):
    nets = finetuner.nets
    assert nets.w1.shape == (21, 64, 5)
    assert sum(p.numel() for p in nets.parameters()) == 449 * 21
    for name, fan_in in (("w1", 5), ("b1", 5), ("w2", 64), ("b2", 64)):
        values, bound = getattr(nets, name), 1 / math.sqrt(fan_in)
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.8 * bound
    again = FineTuner.initial(blocks, seed=3)
    assert torch.equal(again.nets.w1, nets.w1)
    assert not torch.equal(FineTuner.initial(blocks, seed=4).nets.w1, nets.w1)
    state = torch.random.get_rng_state()
    FineTuner.initial(blocks, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_features_stand_in_the_papers_order(blocks, finetuner):
    mean, variance = statistics(blocks)
    raw = torch.rand(len(blocks))
    x = finetuner.features(finetuner.match(blocks), mean, variance, (1.5, 2.5), raw)
    assert tuple(FEATURES)[: len(PAPER_FEATURES)] == PAPER_FEATURES == finetuner.config.features
    assert x.shape == (21, 5)
    columns = [mean, variance, torch.full((21,), 1.5), torch.full((21,), 2.5), raw]
    for column, wanted in zip(x.unbind(1), columns, strict=True):
        assert torch.equal(column, wanted)


def test_a_choice_of_features(blocks):
    finetuner = FineTuner.initial(blocks, features=("scale", "mean"), hidden=8, inputs="raw")
    match = finetuner.match(blocks)
    x = finetuner.features(match, *statistics(blocks), torch.zeros(2), torch.ones(21))
    assert x.shape == (21, 2)
    assert torch.equal(x[:, 0], torch.ones(21))
    assert finetuner.raw_scales(match, x).shape == (21,)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"features": ("mean", "varience")}, "unknown feature, got 'varience'; did you mean"),
        ({"features": ()}, "none given"),
        ({"sharing": "blok"}, "unknown sharing, got 'blok'; did you mean 'block'"),
        ({"hidden": 0}, "must be a whole number"),
    ],
)
def test_bad_arguments(blocks, options, line):
    with pytest.raises(InputError, match=line):
        FineTuner.initial(blocks, **options)


def test_normalised_scales_keep_the_budget(blocks, finetuner):
    match = finetuner.match(blocks)
    numels = torch.tensor(blocks.numels)
    raw = torch.rand(21) * 3
    used = finetuner.used_scales(match, raw, numels)
    assert float((numels * used.square()).sum() / numels.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(used / used[0], raw / raw[0])
    # sqrt(sum d) / sqrt(sum d raw^2), as Algorithm 1 has it
    factor = (numels.sum() / (numels * raw.square()).sum()).sqrt()
    torch.testing.assert_close(used, raw * factor)
    finetuner.config.normalise = False
    assert torch.equal(finetuner.used_scales(match, raw, numels), raw)


def test_unmatched_blocks_are_left_out_of_the_budget():
    raw, numels = torch.tensor([2.0, 5.0, 1.0]), torch.tensor([10, 1000, 30])
    used = normalise(raw, numels, torch.tensor([True, False, True]))
    assert used[1] == 1
    assert float(10 * used[0] ** 2 + 30 * used[2] ** 2) == pytest.approx(40)


@pytest.mark.parametrize("size", [1, 10**10])
def test_normalisation_at_the_edges(size):
    zero = normalise(torch.zeros(3), torch.full((3,), size))
    assert torch.equal(zero, torch.zeros(3))
    ones = normalise(torch.full((3,), 1e-12), torch.full((3,), size))
    torch.testing.assert_close(ones, torch.ones(3))
    none = normalise(torch.ones(3), torch.full((3,), size), torch.zeros(3, dtype=torch.bool))
    assert torch.equal(none, torch.ones(3))


def test_the_gradient_goes_through_the_normalisation():
    raw = torch.tensor([0.3, 0.7, 1.1], dtype=torch.double, requires_grad=True)
    numels = torch.tensor([5, 11, 2])
    assert torch.autograd.gradcheck(lambda r: normalise(r, numels), (raw,))
    budget = (numels * normalise(raw, numels).square()).sum()
    (slope,) = torch.autograd.grad(budget, raw)
    assert slope.abs().max() < 1e-12


def test_the_gradient_reaches_every_network_and_only_its_own(blocks, finetuner):
    finetuner.config.normalise = False
    match = finetuner.match(blocks)
    x = finetuner.features(match, *statistics(blocks), (1.0, 1.0), torch.ones(21))
    raw = finetuner.raw_scales(match, x)
    used = finetuner.used_scales(match, raw, torch.tensor(blocks.numels))
    used[4].backward()
    for parameter in finetuner.nets.parameters():
        hit = parameter.grad.flatten(1).norm(dim=1) if parameter.dim() > 1 else parameter.grad.abs()
        assert hit.nonzero().flatten().tolist() == [4]


def test_layer_sharing_pools_the_statistics_of_a_layer(blocks):
    finetuner = FineTuner.initial(blocks, sharing="layer", inputs="raw")
    assert [g.key for g in finetuner.config.groups] == [
        "model.embed_tokens.weight",
        "layer 0",
        "layer 1",
        "model.norm.weight",
        "lm_head.weight",
    ]
    match = finetuner.match(blocks)
    assert match.count == 21
    x = finetuner.features(match, *statistics(blocks), (1.0, 1.0), torch.ones(21))
    for layer in (0, 1):
        rows = [i for i, b in enumerate(blocks) if b.layer == layer]
        values = torch.cat([blocks[i].parameter.detach().flatten() for i in rows]).double()
        for i in rows:
            assert float(x[i, 0]) == pytest.approx(float(values.mean()), abs=1e-7)
            assert float(x[i, 1]) == pytest.approx(float(values.var()), rel=1e-5)
    raw = finetuner.raw_scales(match, x)
    assert len(set(raw.tolist())) == 5


def test_set_scales_makes_the_networks_constant(blocks, finetuner):
    match = finetuner.match(blocks)
    wanted = torch.rand(21)
    finetuner.set_scales(match, wanted)
    for losses in ((0.0, 0.0), (3.0, 4.0)):
        x = finetuner.features(match, *statistics(blocks), losses, torch.rand(21))
        torch.testing.assert_close(finetuner.raw_scales(match, x), wanted)
    with pytest.raises(InputError, match="finite"):
        finetuner.set_scales(match, -wanted)
    shared = FineTuner.initial(blocks, sharing="layer")
    match = shared.match(blocks)
    shared.set_scales(match, torch.full((21,), 0.25))
    x = shared.features(match, *statistics(blocks), (1.0, 1.0), torch.ones(21))
    torch.testing.assert_close(shared.raw_scales(match, x), torch.full((21,), 0.25))


def test_the_shuffled_control_moves_every_network(blocks, finetuner):
    control = finetuner.shuffled(seed=1)
    before = {tuple(row.flatten().tolist()): g for g, row in enumerate(finetuner.nets.w1)}
    moved = [before[tuple(row.flatten().tolist())] for row in control.nets.w1]
    assert sorted(moved) == list(range(21))
    assert all(g != was for g, was in enumerate(moved))
    for g, was in enumerate(moved):
        assert torch.equal(control.nets.b2[g], finetuner.nets.b2[was])
        assert torch.equal(control.nets.w2[g], finetuner.nets.w2[was])
    assert control.config.groups == finetuner.config.groups
    assert control.config.training["control"] == "shuffled"
    assert "control" not in finetuner.config.training
    again = finetuner.shuffled(seed=1)
    assert torch.equal(again.nets.w1, control.nets.w1)
    assert not torch.equal(finetuner.shuffled(seed=2).nets.w1, control.nets.w1)


def test_distance(blocks, finetuner):
    other = finetuner.copy()
    assert finetuner.distance(other)["total"] == 0
    with torch.no_grad():
        other.nets.w1[2] *= 1.1
    apart = other.distance(finetuner)
    assert len(apart["groups"]) == 21
    assert [g for g, d in enumerate(apart["groups"]) if d > 0] == [2]
    w = finetuner.nets
    size = torch.cat([p[2].flatten() for p in (w.w1, w.b1, w.w2, w.b2)]).norm()
    assert apart["groups"][2] == pytest.approx(
        float((0.1 * w.w1[2].norm() / size).detach()), rel=1e-4
    )
    assert 0 < apart["total"] < apart["groups"][2]
    with pytest.raises(InputError, match="of another size"):
        finetuner.distance(FineTuner.initial(blocks, hidden=8))
