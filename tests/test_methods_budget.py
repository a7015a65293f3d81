"""The measured budget: what first probes tell of sorts of blocks, and what runs keep of it."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_methods import WAYS, equal, weights
from test_methods_selection import BATCH, tiny
from torch import nn

import zopeft
from zopeft.errors import InputError
from zopeft.federated import Federation
from zopeft.journal.codec import decode, encode
from zopeft.journal.header import header_of
from zopeft.methods import METHODS
from zopeft.optim import budget, first_probes
from zopeft.optim.budget import NOTE
from zopeft.optim.sorts import Sort, shares
from zopeft.recipe.load import load_recipe

SLOPES, CURVES = (3.0, 1.0), (0.2, 0.7)
"""Of each element of the table and of the rest of `Known`: slope and curvature."""


class Known(nn.Module):
    """A table of tokens and a matrix whose loss is a quadratic with known slopes and curvatures."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.other = nn.Linear(6, 10, bias=False)
        with torch.no_grad():
            self.embed_tokens.weight.zero_()
            self.other.weight.zero_()

    def loss(self):
        parts = (self.embed_tokens(torch.arange(7)), self.other(torch.eye(6)))
        pairs = zip(parts, SLOPES, CURVES, strict=True)
        return 1.0 + sum((s * p + c / 2 * p.square()).sum() for p, s, c in pairs)


def make(name, model, **options):
    blocks = zopeft.discover(model)
    options = {"lr": 1e-3, "seed": 1, "budget": "measured", **options}
    if METHODS[name].needs_finetuner:
        options["finetuner"] = zopeft.FineTuner.initial(blocks, seed=1)
    return METHODS[name](blocks, **options)


def power(method, scales):
    sizes = torch.tensor(method.blocks.numels, dtype=torch.float64)
    return sizes * torch.as_tensor(scales).double().square()


def test_slope_and_curvature_of_a_known_loss_are_measured_right(monkeypatch):
    monkeypatch.setattr(first_probes, "PROBES", 6000)
    seen = []
    monkeypatch.setattr(budget, "shares", lambda sorts, _: seen.extend(sorts) or [0.5, 0.5])
    method = make("mezo", Known())
    method.step(method.blocks.model.loss)
    rest, table = seen
    whole = 7 * 4 + 6 * 10
    for sort, size, slope, curve in zip((table, rest), (28, 60), SLOPES, CURVES, strict=True):
        # The whole budget on one sort: each of its numbers has the variance whole / size.
        assert sort.given == pytest.approx(size / whole)
        assert sort.energy == pytest.approx(whole * slope**2, rel=0.1)
        assert sort.curvature == pytest.approx(whole * curve, rel=0.05)
    curvature, energy = (method.budget.ahead[:2]).tolist()
    assert curvature == pytest.approx((table.curvature + rest.curvature) / 2, rel=1e-4)
    assert energy == pytest.approx((table.energy + rest.energy) / 2, rel=1e-4)


class Bent(Known):
    """One number of the rest has nearly all of its curvature, so that bends scatter widely."""

    def loss(self):
        table, rest = self.embed_tokens.weight, self.other.weight
        return 1.0 + table.sum() + rest.sum() + 5e5 * rest[0, 0] ** 2 + 10 * table.square().sum()


@pytest.mark.parametrize("seed", range(4))
def test_what_bends_scatter_by_is_not_taken_for_slope(monkeypatch, seed):
    seen = []
    monkeypatch.setattr(budget, "shares", lambda sorts, _: seen.extend(sorts) or [0.5, 0.5])
    method = make("mezo", Bent(), seed=seed)
    method.step(method.blocks.model.loss)
    assert len(seen) == 2
    for sort in seen:
        # 88 is the mean of what a square of a normal number scatters about; half a bend is 1e6.
        assert 0.0 < sort.energy < 20 * 88


def test_the_budget_goes_where_a_step_gains_most_and_stays_what_it_is():
    model = Known()
    method = make("mezo", model)
    method.step(model.loss)
    used = power(method, method.last_record.scales)
    assert float(used.sum()) == pytest.approx(88.0, rel=1e-6)
    names = [block.role for block in method.blocks]
    # Energy over curvature: 45 for the table, 1.4 for the rest.
    assert float(used[names.index("embed")] / used.sum()) > 0.9


def test_the_budget_stays_where_scales_move_with_the_run():
    method = make("mezo", Known())
    method.step(method.blocks.model.loss)
    for later in ([1.0, 1.0], [3.0, 0.5]):
        scales = torch.tensor(later)
        found = power(method, method.budget.shared(scales)).sum()
        assert float(found) == pytest.approx(float(power(method, scales).sum()), rel=1e-6)


def test_sorts_keep_what_they_are_inside():
    model = tiny()
    method = make("zo_finetuner", model)
    plain = make("zo_finetuner", tiny(), budget="given")
    for each in (method, plain):
        each.step(zopeft.BatchLoss(each.blocks.model, BATCH))
    ours, given = (torch.tensor(each.last_record.scales).double() for each in (method, plain))
    ratio = ours / given
    for sort in method.budget.sorts(None).values():
        own = ratio[sorted(sort)]
        assert torch.allclose(own, own[0].expand_as(own), rtol=1e-5)
    assert not torch.allclose(ratio, torch.ones_like(ratio), rtol=1e-2)
    total = power(method, ours).sum() / power(method, given).sum()
    assert float(total) == pytest.approx(1.0, rel=1e-6)


def test_shares():
    same = [Sort(0.2, 5.0, 10.0), Sort(0.8, 5.0, 10.0)]
    assert shares(same) == pytest.approx([1 / 3, 2 / 3])
    better = [Sort(0.2, 10.0, 10.0), Sort(0.8, 5.0, 10.0)]
    assert shares(better) == pytest.approx([2 / 3, 1 / 3])
    assert sum(shares([Sort(0.1, 3.0, 1.0), Sort(0.3, 2.0, 9.0), Sort(0.6, 1.0, 2.0)])) == 1.0
    lost = [Sort(0.2, 10.0, 0.0), Sort(0.8, 5.0, 10.0)]
    assert shares(lost) == pytest.approx(shares(better))
    for nothing in (0.0, math.nan, math.inf):
        assert shares([Sort(0.2, nothing, 10.0), Sort(0.8, 5.0, 10.0)]) == [0.2, 0.8]


@pytest.mark.parametrize("lr", ["auto", 1e-3])
def test_it_takes_thirteen_passes_and_looks_pay_for_them(lr):
    model = tiny()
    method = make("mezo", model, lr=lr)
    method.probing.steps_planned = 150
    closure = zopeft.BatchLoss(model, BATCH)
    method.step(closure)
    assert method.forward_passes == 15 + (lr == "auto")
    if lr == "auto":
        for _ in range(149):
            method.step(closure)
        assert method.forward_passes - 300 <= 0.05 * 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", ["auto", 1e-3])
@pytest.mark.parametrize("name", ["mezo", "zo_finetuner"])
def test_replay_and_resume_keep_every_bit(name, lr, dtype, tmp_path):
    model = tiny().to(dtype)
    method, start, states, records = make(name, model, lr=lr), weights(model), [], []
    closure, before = zopeft.BatchLoss(model, BATCH), None
    for _ in range(4):
        torch.save((method.state_dict(), model.state_dict()), tmp_path / "state")
        states.append(torch.load(tmp_path / "state", weights_only=True))
        method.step(closure)
        before = decode(encode(method.last_record, before), before)
        records.append(before)
    ended = weights(model)
    assert not equal(ended, start) and method.budget.factors is not None
    method.step(closure)
    again = weights(model)
    twin = tiny().to(dtype)
    replayed = make(name, twin, lr=lr)
    if lr == "auto":
        header = header_of(method)
        replayed.begin_rate(header.rate, header.learning_rate)
    for record in records:
        replayed.replay(record)
    assert equal(weights(twin), ended) and replayed.forward_passes == 0
    replayed.step(zopeft.BatchLoss(twin, BATCH))
    assert equal(weights(twin), again) and replayed.forward_passes < 13
    for number, (state, values) in enumerate(states):
        other = tiny().to(dtype)
        other.load_state_dict(values)
        resumed = make(name, other, lr=lr)
        resumed.load_state_dict(state)
        for _ in range(5 - number):
            resumed.step(zopeft.BatchLoss(other, BATCH))
        assert equal(weights(other), again), number


@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_directions(way):
    model = tiny()
    method = make("mezo", model, lr="auto", **WAYS[way])
    closure = zopeft.BatchLoss(model, BATCH)
    first = float(closure().detach())
    for _ in range(20):
        method.step(closure)
    assert float(closure().detach()) < first and method.budget.factors is not None
    assert list(method.last_record.notes) == [NOTE, "ahead"]


@pytest.mark.parametrize("name", ["mezo", "zo_finetuner"])
def test_a_learning_rate_of_zero_changes_no_bit(name):
    model = tiny()
    start, method = weights(model), make(name, model, lr=0.0)
    for _ in range(2):
        method.step(zopeft.BatchLoss(model, BATCH))
    assert equal(weights(model), start) and method.budget.factors is not None


def test_a_first_loss_that_is_not_finite_leaves_measuring_to_the_next_step():
    model = tiny()
    method, closure = make("mezo", model), zopeft.BatchLoss(model, BATCH)
    method.step(lambda: math.nan * closure())
    assert method.budget.factors is None and method.skipped == 1
    skipped = method.last_record
    method.step(closure)
    assert method.budget.factors is not None
    twin = tiny()
    replayed = make("mezo", twin)
    for record in (skipped, method.last_record):
        replayed.replay(record)
    assert equal(weights(model), weights(twin))


def test_one_sort_has_nothing_to_share():
    model = tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, budget="measured")
    method.step(zopeft.BatchLoss(model, BATCH))
    assert method.forward_passes == 2 and method.last_record.scales is None


@pytest.mark.parametrize("start", [True, False])
def test_lora_shares_once_both_of_its_matrices_move_the_loss(start):
    """B begins at zero: then nothing is to be seen of A, and all is as the scales give it."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    torch.manual_seed(1)
    model = get_peft_model(tiny(), config)
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, budget="measured")
    method.step(zopeft.BatchLoss(model, BATCH))
    assert set(method.budget.sorts(None)) == {"lora_A", "lora_B"}
    used = torch.tensor(method.last_record.scales)
    assert torch.equal(used, torch.ones_like(used)) == start
    assert method.forward_passes == 2 + (7 if start else 13)


def test_other_values_are_refused_in_a_line():
    with pytest.raises(
        InputError, match="budget: must be one of given, measured, turns, got 'measure'"
    ):
        make("mezo", tiny(), budget="measure")
    with pytest.raises(
        InputError, match="budget: must be one of given, measured, turns, got 'even'"
    ):
        load_recipe("tune", overrides=["method.budget=even"])
    with pytest.raises(InputError, match="clients send losses alone"):
        Federation(make("mezo", tiny()), ask=None)
    method = make("mezo", tiny(), budget="given")
    with pytest.raises(InputError, match="budget 'measured' instead of 'given'"):
        header_of(method).check(header_of(make("mezo", tiny())), "journal")
