"""Meta-training of subspaces: statistics in the shape, two passes, and that learning helps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_meta import batches, bits, draw, loss_of, tiny

import zopeft
from zopeft.engine import Direction, Engine, LowRank, Rows, Subspace
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.meta import MetaSettings
from zopeft.meta.gradients import consumed
from zopeft.meta.shaped import core, seen
from zopeft.meta.signal_trainer import SignalTrainer
from zopeft.meta.statistics import BlockStatistics
from zopeft.tasks.frequency import count_tokens


def basis(size, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, rank, generator=generator))[0]


SHAPES = {
    "none": None,
    "low rank": LowRank(2),
    "subspace": Subspace(basis(7, 2, 0), basis(5, 2, 1), 0.0),
    "mixed": Subspace(basis(7, 2, 0), basis(5, 2, 1), 0.3),
    "left": Subspace(basis(7, 2, 0), None, 0.3),
    "right": Subspace(None, basis(5, 2, 1), 0.3),
    "rows": Rows(torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 1.0, 4.0])),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_seen_is_what_the_engines_directions_meet(name):
    """E <g, u>^2 over the engine's own directions, against the squared numbers that are seen."""
    shape = SHAPES[name]
    layer = torch.nn.Linear(5, 7, bias=False)
    torch.nn.init.zeros_(layer.weight)
    blocks = zopeft.discover(layer)
    engine = Engine(blocks, shapes={} if shape is None else {0: shape})
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    squares = []
    for seed in range(1500):
        with torch.no_grad(), engine.perturbed(Direction(seed), 1.0):
            squares.append(float((layer.weight * gradient).sum()) ** 2)
    pieces = seen(gradient, shape)
    found = sum(float((piece.values * piece.factor).square().sum()) for piece in pieces)
    assert sum(squares) / len(squares) == pytest.approx(found, rel=0.16)


def test_the_core_does_not_depend_on_the_pieces(monkeypatch):
    gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(2))
    for name in ("mixed", "left", "right"):
        whole = core(gradient, SHAPES[name])
        monkeypatch.setattr("zopeft.meta.shaped.CHUNK", 11)
        torch.testing.assert_close(core(gradient, SHAPES[name]), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("mix", [0.0, 0.4])
def test_statistics_in_the_shape_against_direct_computation(mix):
    model = tiny()
    blocks = zopeft.discover(model)
    shapes = {
        0: Rows(torch.arange(1.0, 62.0)),
        1: Subspace(basis(16, 3, 0), basis(16, 3, 1), mix),
        5: Subspace(basis(24, 3, 2), basis(16, 3, 3), mix),
    }
    statistics = BlockStatistics(blocks, 5, shapes)
    stream, gradients = batches(), []
    for step in range(6):
        _, batch = next(stream)
        statistics.begin_gradient(step)
        with consumed(blocks, statistics.take_gradient):
            loss_of(model, batch).backward()
        statistics.begin_curvature(7)
        with consumed(blocks, statistics.take_curvature):
            loss_of(model, batch).backward()
        loss_of(model, batch).backward()
        gradients.append([b.parameter.grad.double() for b in blocks])
        model.zero_grad()
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients[-1]))
        assert float(statistics.gradient_norm) == pytest.approx(norm, rel=1e-5)

    def root(index, gradient):
        shape = shapes.get(index)
        if isinstance(shape, Rows):
            weights = shape.weights.double()
            return (gradient * (weights / weights.square().mean().sqrt())[:, None]).flatten()
        if shape is None:
            return gradient.flatten()
        inner = shape.left.double().t() @ gradient @ shape.right.double()
        c = math.sqrt((1 - mix) * gradient.numel() / 9)
        return torch.cat([c * inner.flatten(), math.sqrt(mix) * gradient.flatten()])

    for index in range(len(blocks)):
        mine = [root(index, g[index]) for g in gradients]
        energy = sum(float(g.square().sum()) for g in mine) / 6
        assert float(statistics.energy()[index]) == pytest.approx(energy, rel=1e-4)
        assert float(statistics.curvature()[index]) == pytest.approx(7 * energy, rel=1e-4)
        even, odd = sum(mine[0::2]) / 3, sum(mine[1::2]) / 3
        spread = float(even.norm() * odd.norm())
        found = float(statistics.signal()[index])
        assert found == pytest.approx(float((even * odd).sum()), abs=0.1 * spread)


def trained(model, counts=None, **settings):
    blocks = zopeft.discover(model)
    plain = {"steps": 12, "rank": 3, "capacity": "scales", "token_rows": "none"}
    checked = MetaSettings.of(objective="signal", **{**plain, **settings})
    capacity = {name: getattr(checked, name) for name in ("capacity", "rank", "mix")}
    finetuner = FineTuner.initial(blocks, rows=checked.token_rows, **capacity)
    trainer = SignalTrainer(model, batches(), loss_of, draw, checked, blocks, finetuner, counts)
    return finetuner, trainer, trainer.train()


@pytest.mark.parametrize("lora", [False, True])
def test_meta_training_learns_bases_and_gives_the_model_back(lora):
    model = tiny(lora)
    before = bits(model)
    finetuner, trainer, scores = trained(model, capacity="subspace")
    assert all(torch.equal(after, before[n]) for n, after in bits(model).items())
    assert [row["step"] for row in trainer.history] == list(range(12))
    # The second half starts again from the base model.
    assert scores["resets"] == 1
    count = 8 if lora else 15
    assert scores["shapes"] == f"{count} blocks in a learned subspace"
    assert len(finetuner.bases) == count and finetuner.config.capacity == "subspace"
    blocks = zopeft.discover(model)
    match = finetuner.match(blocks)
    assert len(finetuner.shapes(match)) == count
    raw = finetuner.raw_scales(match, torch.zeros(len(blocks), 5))
    assert float(raw.detach().std()) > 0


def test_the_learned_basis_holds_more_of_a_new_gradient_than_a_random_one():
    model = tiny()
    finetuner, _, _ = trained(model, capacity="subspace", steps=16)
    blocks = zopeft.discover(model)
    match = finetuner.match(blocks)
    learned = finetuner.shapes(match)
    random = finetuner.with_random_bases(0).shapes(match)
    loss_of(model, next(itertools.islice(batches(), 50, None))[1]).backward()
    shares = []
    for index, shape in learned.items():
        gradient = blocks[index].parameter.grad
        held, chance = (core(gradient, s).square().sum() for s in (shape, random[index]))
        shares.append(float(held / chance))
    assert sorted(shares)[len(shares) // 2] > 3.0


def test_frequency_leaves_the_embedding_out_of_the_subspaces():
    model = tiny()
    counts = torch.arange(61)
    finetuner, trainer, scores = trained(model, counts, capacity="subspace", token_rows="frequency")
    assert scores["shapes"] == ("14 blocks in a learned subspace, 1 with rows by token frequency")
    assert isinstance(trainer.statistics.shapes[0], Rows) and 0 not in finetuner.bases
    _, trainer, scores = trained(model, counts, token_rows="frequency")
    assert scores["shapes"] == "1 with rows by token frequency"
    assert list(trainer.statistics.shapes) == [0]


def test_the_rule_none_leaves_all_scales_one():
    model = tiny()
    finetuner, _, scores = trained(model, capacity="subspace", rule="none")
    blocks = zopeft.discover(model)
    match = finetuner.match(blocks)
    raw = finetuner.raw_scales(match, torch.randn(len(blocks), 5)).detach()
    torch.testing.assert_close(raw, torch.ones(len(blocks)))
    assert scores["log_gain_over_ones"] == 0.0 and scores["best_lr"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "paper", "capacity": "subspace"},
            "meta.capacity: the paper's objective has none",
        ),
        (
            {"objective": "paper", "token_rows": "frequency"},
            "meta.token_rows: the paper's objective has none",
        ),
        (
            {"objective": "signal", "capacity": "subspace", "sharing": "layer"},
            "meta.capacity: a subspace belongs to one block",
        ),
        (
            {"objective": "signal", "capacity": "subspace", "steps": 7},
            "meta.steps: must be at least 8 for a subspace, got 7",
        ),
        ({"capacity": "subspce"}, "must be one of auto, scales, subspace, got 'subspce'"),
        ({"rank": 0}, "meta.rank: must be >= 1 and <= 256, got 0"),
        ({"mix": 2.0}, "meta.mix: must be >= 0.0 and <= 1.0, got 2.0"),
    ],
)
def test_bad_capacities_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MetaSettings.of(**settings)


def test_token_counts_of_dictionaries_and_of_a_stream():
    rows = [{"input_ids": [1, 1, 4]}, {"input_ids": torch.tensor([[4, 0]])}]
    assert count_tokens([rows]).tolist() == [1, 2, 0, 0, 2]
    with pytest.raises(InputError, match="can be read only once"):
        count_tokens([iter(rows)])
    with pytest.raises(InputError, match="has no input_ids"):
        count_tokens([[{"text": "a"}]])
    with pytest.raises(InputError, match="holds no token"):
        count_tokens([[]])


class Regression(torch.nn.Module):
    """``y = W x`` whose targets move in two output directions and two input directions alone."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(30, 40, bias=False)
        torch.nn.init.zeros_(self.lin.weight)
        self.outputs, self.inputs = basis(40, 2, 5), basis(30, 2, 6)

    def target(self, seed):
        middle = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed))
        return self.outputs @ middle @ self.inputs.t()

    def loss(self, target, x):
        return (x @ (self.lin.weight - target).t()).square().sum(1).mean()


def test_a_learned_subspace_beats_a_random_one_at_the_same_forward_passes():
    """Tasks share two directions a side: learned on some, used on one that was not seen."""
    model = Regression()
    blocks = zopeft.discover(model)
    generator = torch.Generator().manual_seed(0)

    def stream():
        for step in itertools.count():
            x = torch.randn(16, 2, generator=generator) @ model.inputs.t()
            noise = torch.randn(16, 30, generator=generator)
            yield f"task {step % 3}", (model.target(step % 3), x + 0.1 * noise)

    settings = MetaSettings.of(
        objective="signal", capacity="subspace", rank=4, mix=0.1, steps=24, rule="none", clip=0.0
    )
    finetuner = FineTuner.initial(blocks, capacity="subspace", rank=4, mix=0.1)
    trainer = SignalTrainer(
        model,
        stream(),
        lambda model, batch: model.loss(*batch),
        lambda model, batch, seed: (batch, 16),
        settings,
        blocks,
        finetuner,
    )
    trainer.train()
    target, x = model.target(77), basis(30, 2, 6).t() * 2.0
    start = float(model.loss(target, x).detach())

    def reached(candidate, lr):
        torch.nn.init.zeros_(model.lin.weight)
        method = zopeft.ZOFineTuner(blocks, candidate, lr=lr, eps=1e-3)
        for _ in range(100):
            method.step(lambda: model.loss(target, x))
        return float(model.loss(target, x).detach()) / start

    def best(candidate):
        return min(reached(candidate, lr) for lr in (1e-4, 3e-4, 1e-3))

    learned = best(finetuner)
    assert learned < 0.05
    assert best(finetuner.with_random_bases(1)) > 10 * learned
    assert best(finetuner.without_bases()) > 10 * learned


@pytest.mark.parametrize(
    ("settings", "space", "capacity", "rows"),
    [
        ({}, "full", "subspace", "frequency"),
        ({}, "adapter", "scales", "frequency"),
        ({"sharing": "role"}, "full", "scales", "frequency"),
        ({"policy": "state"}, "full", "scales", "frequency"),
        ({"steps": 7, "reset_every": 0}, "full", "scales", "frequency"),
        ({"capacity": "scales", "token_rows": "none"}, "full", "scales", "none"),
        ({"capacity": "subspace"}, "adapter", "subspace", "frequency"),
        ({"objective": "paper"}, "full", "scales", "none"),
    ],
)
def test_what_auto_stands_for(settings, space, capacity, rows):
    decided = MetaSettings.of(**settings).decided(space)
    assert (decided.capacity, decided.token_rows) == (capacity, rows)
