"""What single methods do beyond one block and one step: bases, cones, choices, alignment."""

from __future__ import annotations

import math

import pytest
import torch
from field import FIELD, extras
from oracle import oracle
from test_methods import Quadratic, weights
from test_methods_selection import BATCH, changed, tiny
from test_methods_vectors import PROBLEM, Z1, Z2, Z3, draws, seed
from torch import nn

import zopeft
from zopeft.engine import Direction
from zopeft.errors import InputError
from zopeft.methods import METHODS
from zopeft.methods.agzo import linear_layers
from zopeft.optim.step import Step

THETA, A, B = (torch.tensor(PROBLEM[key], dtype=torch.float64) for key in ("theta0", "a", "b"))


def loss_at(theta):
    return float((A * theta * theta).sum() / 2 + (B * theta).sum())


def slope_along(z):
    return float((A * THETA * z).sum() + (B * z).sum())


class Small(nn.Module):
    """An embedding, a norm, a convolution's weight read by hand, and two linear layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)
        self.conv = nn.Conv1d(5, 5, 1, bias=False)
        self.ids = torch.arange(7)

    def loss(self):
        hidden = self.first(self.norm(self.embed(self.ids)))
        hidden = self.conv(hidden.t().unsqueeze(0))[0].t()
        return self.second(hidden.tanh()).square().sum()


def agzo_steps(count, renew, r=1, move=lambda model, step: None):
    """Method, model, and what each step changed, the bases it used and its notes."""
    model = Small()
    blocks = zopeft.discover(model)
    method = METHODS["agzo"](blocks, lr=1e-2, eps=1e-2, seed=2, r=r, renew=renew)
    found = []
    for step in range(count):
        # Other inputs in each step: a basis that is kept is told from one that is renewed.
        torch.manual_seed(step)
        model.embed.weight.data.normal_()
        move(model, step)
        before = [block.data.clone() for block in blocks]
        method.step(model.loss)
        changed = [block.data - old for block, old in zip(blocks, before, strict=True)]
        bases = {n: basis.clone() for n, basis in method.kept["basis"].items()}
        found.append((changed, bases, set(method.last_record.notes or {})))
    return method, model, found


def test_linear_layers_are_guided_and_nothing_else():
    method, _, found = agzo_steps(1, renew=1)
    names = {method.blocks[n].name for n in linear_layers(method.blocks)}
    assert names == {"first.weight", "second.weight"}
    changed, bases, notes = found[0]
    for index, block in enumerate(method.blocks):
        assert changed[index].any()
        guided = block.name in names
        assert (f"A{index}" in notes) == guided
        if len(block.shape) == 2:
            rank = torch.linalg.matrix_rank(changed[index] / changed[index].norm(), rtol=1e-4)
            assert int(rank) == (1 if guided else min(block.shape)), block.name
    assert all(not basis.any() for n, basis in bases.items() if f"A{n}" not in notes)


@pytest.mark.parametrize("renew", [1, 2, 3])
def test_a_basis_is_renewed_in_its_turn_and_kept_between(renew):
    method, _, found = agzo_steps(6, renew)
    for index in linear_layers(method.blocks):
        for step, (moves, bases, notes) in enumerate(found):
            renewed = step % renew == 0
            assert (f"A{index}" in notes) == renewed
            basis = bases[index]
            torch.testing.assert_close(basis.norm(), torch.tensor(1.0))
            if step:
                assert torch.equal(basis, found[step - 1][1][index]) == (not renewed)
            # What the step wrote lies along the basis that it ended with.
            move = moves[index] / moves[index].norm()
            torch.testing.assert_close(move @ basis @ basis.t(), move, rtol=0, atol=1e-3)


@pytest.mark.parametrize("r", [1, 2])
def test_a_basis_spans_the_leading_directions_of_the_inputs(r):
    seen = {}

    def watch(model, step):
        # Two strong directions of the tokens, far above the others.
        strong = torch.tensor([9.0, 6.0, 0.1, 0.1, 0.1, 0.1])
        model.norm = nn.Identity()
        model.embed.weight.data.mul_(strong)
        seen["inputs"] = model.embed.weight.detach().clone()

    method, _, found = agzo_steps(1, renew=1, r=r, move=watch)
    index = next(n for n, block in enumerate(method.blocks) if block.name == "first.weight")
    basis = found[0][1][index]
    _, _, right = torch.linalg.svd(seen["inputs"])
    torch.testing.assert_close(basis.t() @ basis, torch.eye(r), rtol=0, atol=1e-5)
    # Three rounds from a random start, so near and not equal.
    assert float((right[:r] @ basis).norm()) > 0.98 * math.sqrt(r)


def cone_of(per, theta=1.2, **options):
    """Means before, cone parts of u by block, and sizes, after two steps on several blocks."""
    model = Quadratic()
    blocks = zopeft.discover(model)
    method = METHODS["conmezo"](blocks, lr=1e-3, eps=1e-2, seed=3, per=per, theta=theta, **options)
    method.step(model.loss)
    before = [each.clone() for each in method.kept["mean"]]
    method.step(model.loss)
    gradient, z = method.last_record.projected_grads[0], Direction(method.last_record.seed)
    parts = []
    for index, old in enumerate(before):
        u = (method.kept["mean"][index] - 0.99 * old) / (0.01 * gradient)
        (part,) = method.engine.elements.parts(index, blocks[index].data)
        parts.append(u - math.sin(theta) * z.values(part).view_as(u))
    return before, parts, blocks.numels


@pytest.mark.parametrize("per", ["all", "block"])
def test_a_cone_has_the_length_of_noise_over_all_weights_or_a_block(per):
    means, parts, sizes = cone_of(per)
    share = math.cos(1.2)
    whole = math.sqrt(sum(sizes) / sum(float(m.square().sum()) for m in means))
    lengths = []
    for mean, part, size in zip(means, parts, sizes, strict=True):
        own = math.sqrt(size) / float(mean.norm())
        lengths.append(own)
        factor = share * (own if per == "block" else whole)
        torch.testing.assert_close(part, factor * mean, rtol=1e-3, atol=1e-4)
    assert max(lengths) > 1.2 * min(lengths)


def test_a_cone_counts_the_weights_of_the_step_alone():
    """Blocks that a step leaves out have no part in the length, whatever mean they have."""
    model = Quadratic()
    blocks = zopeft.discover(model)
    method = METHODS["conmezo"](blocks, lr=1e-3, eps=1e-2, seed=3, theta=0.0)
    for each in method.kept["mean"]:
        each.fill_(2.0)
    chosen = frozenset({0, 2})
    step = Step(method, 1, seed(1), 1e-2, chosen=chosen)
    mean = step.state.held("mean")
    squares = method.engine.dot(mean, mean).numpy()
    cone = method._cone(step, mean, squares, 1.0)
    for index, block in enumerate(blocks):
        assert cone.touches(index) == (index in chosen)
        if index in chosen:
            (part,) = method.engine.elements.parts(index, block.data)
            # sqrt(d) m / |m| of a constant m is one, if d and |m| are of the same weights.
            torch.testing.assert_close(cone.values(part), torch.ones(part.shape))


@pytest.mark.parametrize(("number", "share"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_a_cone_narrows_while_it_warms_up(number, share):
    theta, mean = 0.4, torch.tensor([1.5, 3.0, -3.0, -0.75], dtype=torch.float64)
    z = torch.tensor(Z1, dtype=torch.float64)
    method, loss = oracle("conmezo", PROBLEM, {seed(number): z}, theta=theta, warmup=4)
    method.kept["mean"][0].copy_(mean)
    method.steps = number
    method.step(loss)
    angle = math.pi / 2 + share * (theta - math.pi / 2)
    u = math.sin(angle) * z + (math.cos(angle) * 2.0 / float(mean.norm()) * mean if share else 0.0)
    gradient = slope_along(u)
    expected = THETA - 0.01 * gradient * u
    torch.testing.assert_close(method.engine.theta, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        method.kept["mean"][0], 0.99 * mean + 0.01 * gradient * u, rtol=0, atol=1e-5
    )


CHOICES = {
    "the step": ((1.0, 0.5, 0.7), -1.0),
    "its opposite": ((1.0, 0.7, 0.5), 1.0),
    "neither": ((1.0, 1.1, 1.2), 0.0),
    "neither, of equals": ((1.0, 1.0, 1.0), 0.0),
    "the step, of equals": ((1.0, 0.5, 0.5), -1.0),
}


@pytest.mark.parametrize("case", CHOICES)
@pytest.mark.parametrize("up", [1.0, -1.0])
def test_the_conservative_step_is_the_branch_of_least_loss(case, up):
    (here, ahead, behind), side = CHOICES[case]
    model = Quadratic()
    method = METHODS["conservative"](zopeft.discover(model), lr=0.1, eps=1e-2, seed=3)
    start, seen = weights(model), []
    # The slope is up, whatever the losses of the branches.
    losses = iter([here, 2.0 + up * 0.03, 2.0, ahead, behind])

    def scripted():
        seen.append(weights(model))
        return torch.tensor(next(losses))

    method.step(scripted)
    gradient, z = method.last_record.projected_grads[0], Direction(method.last_record.seed)
    assert gradient == pytest.approx(up * 1.5, rel=1e-4) and len(seen) == 5
    length = 0.1 * gradient
    steps = (0.0, 1e-2, -1e-2, -length, length, side * length)
    for place, step in zip((*seen, weights(model)), steps, strict=True):
        for index, (own, before) in enumerate(zip(place, start, strict=True)):
            (part,) = method.engine.elements.parts(index, before)
            expected = before + step * z.values(part).view_as(before)
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 3, 5])
@pytest.mark.parametrize("pairs", [1, 2])
def test_a_step_along_an_aligned_direction(pairs, number):
    """All of it from the draws: rough gradient, side, alignment, slope and step."""
    method, loss = oracle("dap", PROBLEM, draws(Z1, Z2, Z3, step=number), pairs=pairs)
    method.steps = number
    w, *pool = (torch.tensor(z, dtype=torch.float64) for z in (Z1, Z2, Z3)[: pairs + 1])
    rough = sum(slope_along(z) * z for z in pool) / pairs
    side = Step(method, number, seed(number), 0.125).dice("side").choice((1.0, -1.0))
    length = float(rough.norm())
    v = w - float(w @ rough) * rough / length**2 + side * rough / length
    assert abs(float(v @ rough)) == pytest.approx(length)
    method.step(loss)
    gradient = (loss_at(THETA + 0.125 * v) - loss_at(THETA - 0.125 * v)) / 0.25
    assert method.last_record.projected_grads[-1] == pytest.approx(gradient, rel=1e-5)
    expected = THETA - 0.01 * gradient * v
    torch.testing.assert_close(method.engine.theta, expected, rtol=0, atol=1e-6)
    assert method.forward_passes == method.forwards == 2 * pairs + 2


def test_the_sides_of_an_aligned_direction_are_both_taken():
    method, _ = oracle("dap", PROBLEM, {})
    sides = {Step(method, n, seed(n), 0.1).dice("side").choice((1.0, -1.0)) for n in (0, 3, 5)}
    assert sides == {1.0, -1.0}


def test_where_nothing_has_a_slope_an_aligned_direction_is_the_noise_itself():
    zs = draws(Z1, Z2)
    method, _ = oracle("dap", PROBLEM, zs)
    losses = iter([2.0, 2.0, 3.0, 1.0])
    method.step(lambda: torch.tensor(next(losses)))
    expected = THETA - 0.01 * 8.0 * zs[seed(0)]
    torch.testing.assert_close(method.engine.theta, expected)


def test_a_rescaling_is_gradient_descent_of_the_factors():
    """DiZO's, on one block, from its draws: rounds, bounds, and the step that goes with it."""
    options = {"every": 2, "rounds": 3, "radius": 0.25, "rate": 1e-4, "reach": 0.2}
    zs = {seed(n): torch.tensor(z, dtype=torch.float64) for n, z in enumerate((Z1, Z2, Z3, Z1))}
    method, loss = oracle("dizo", PROBLEM, zs, **options)
    theta = THETA
    for number in range(4):
        z = zs[seed(number)]
        slope = (loss_at(theta + 0.125 * z) - loss_at(theta - 0.125 * z)) / 0.25
        method.step(loss)
        expected, passes = theta - 0.01 * slope * z, 2
        if number == 2:
            dice, factor, away = Step(method, 2, seed(2), 0.125).dice("factors"), 1.0, theta - THETA
            for _ in range(3):
                move = 0.25 * dice.gauss(0.0, 1.0)
                ends = [loss_at(THETA + (factor + side * move) * away) for side in (1, -1)]
                factor -= 1e-4 * (ends[0] - ends[1]) / (2.0 * 0.25**2) * move
                factor = min(1.2, max(0.8, factor))
            assert 0.8 < factor < 1.2 and abs(factor - 1.0) > 1e-3
            expected, passes = expected + (factor - 1.0) * away, 8
        torch.testing.assert_close(method.engine.theta, expected, rtol=1e-6, atol=1e-7)
        theta = method.engine.theta.clone()
        assert method.last_record.asked == () or len(method.last_record.asked) == passes


@pytest.mark.parametrize("rate", [1e6, -1e6])
def test_a_rescaling_goes_no_further_than_its_reach(rate, monkeypatch):
    options = {"every": 1, "rounds": 1, "radius": 0.25, "rate": abs(rate), "reach": 0.2}
    method, loss = oracle("dizo", PROBLEM, draws(Z1) | draws(Z2, step=1), **options)
    method.step(loss)
    before = method.engine.theta.clone()
    away = before - THETA
    # One draw is as good as its opposite: the sign of the loss decides which end is reached.
    sign = 1.0 if rate > 0 else -1.0
    ends = [loss_at(THETA + factor * away) for factor in (1.01, 0.99)]
    method.step(lambda: sign * loss())
    slope = (
        sign
        * (
            loss_at(before + 0.125 * draws(Z2, step=1)[seed(1)])
            - loss_at(before - 0.125 * draws(Z2, step=1)[seed(1)])
        )
        / 0.25
    )
    grows = (sign * (ends[0] - ends[1])) < 0
    factor = 1.2 if grows else 0.8
    expected = before - 0.01 * slope * draws(Z2, step=1)[seed(1)] + (factor - 1.0) * away
    torch.testing.assert_close(method.engine.theta, expected, rtol=1e-6, atol=1e-7)


GRADIENT_UNITS = {
    *("mezo", "mezo_momentum", "lozo", "tezo", "subzero", "lezo", "sparse_mezo", "sensitive"),
    *("zo_finetuner", "qzo"),
}
"""Methods whose steps are lr times an estimate of the gradient: lr="auto" is theirs."""


@pytest.mark.parametrize("name", FIELD)
def test_what_a_method_says_of_its_steps_is_so(name):
    kind = METHODS[name]
    assert kind.gradient_units == (name in GRADIENT_UNITS)
    model = Quadratic()
    blocks = zopeft.discover(model)
    options = {"lr": 1e-3, "eps": 1e-2, "directions": 2, **extras(name, blocks)}
    if kind.single:
        with pytest.raises(InputError, match="directions"):
            kind(blocks, **options)
        return
    method = kind(blocks, **options)
    method.step(model.loss)
    assert len(method.last_record.projected_grads) == 2 and method.forward_passes == 4


def test_an_anchor_is_replayed_through_all_steps_since():
    """MeZO-SVRG, every 4 steps: weights of the anchor are the weights less what was written."""
    zs = [torch.tensor(z, dtype=torch.float64) for z in (Z1, Z2, Z3, Z2, Z3)]
    options = {"every": 4, "inner": 0.5, "lr": 1e-2}
    method, loss = oracle("mezo_svrg", PROBLEM, {seed(n): z for n, z in enumerate(zs)}, **options)
    theta = anchor = slope = THETA

    def along(point, z):
        return (loss_at(point + 0.125 * z) - loss_at(point - 0.125 * z)) / 0.25

    for number, z in enumerate(zs):
        if number % 4 == 0:
            anchor, slope = theta, along(theta, z) * z
            expected = theta - 1e-2 * slope
        else:
            change = along(theta, z) - along(anchor, z)
            expected = theta - 5e-3 * (change * z + slope)
        method.step(loss)
        torch.testing.assert_close(method.engine.theta, expected, rtol=1e-5, atol=1e-7)
        theta = method.engine.theta.clone()
    assert method.forward_passes == 2 * 2 + 3 * 4


@pytest.mark.parametrize(("skip", "count"), [(0.75, 1), (0.5, 2), (0.95, 1), (0.3, 3), (0.0, 4)])
def test_a_step_takes_some_layers_and_all_that_is_in_none(skip, count):
    model = tiny(layers=4)
    blocks = zopeft.discover(model)
    method = METHODS["lezo"](blocks, lr=1e-2, eps=1e-2, seed=1, skip=skip)
    taken = set()
    for _ in range(12):
        before = [block.data.clone() for block in blocks]
        method.step(zopeft.BatchLoss(model, BATCH))
        layers = {blocks[n].layer for n in changed(method, before)}
        assert changed(method, before) == {n for n, b in enumerate(blocks) if b.layer in layers}
        assert None in layers and len(layers) == 1 + count
        taken |= layers
    assert taken == {None, 0, 1, 2, 3}


@pytest.mark.parametrize(("pool", "losses"), [(3, (2.0, 1.0, 3.0)), (4, (4.0, 1.0, 2.0, 3.0))])
def test_a_guide_is_the_better_half_against_the_worse(pool, losses):
    zs = [torch.tensor(z, dtype=torch.float64) for z in (Z1, Z2, Z3, [0.5, 0.5, -2.0, 1.0])][:pool]
    known = {seed(0, n): z for n, z in enumerate(zs)}
    order, half = sorted(range(pool), key=losses.__getitem__), pool // 2
    better, worse = ([zs[n] for n in part] for part in (order[:half], order[half:]))
    u = sum(better) / len(better) - sum(worse) / len(worse)
    for name, direction in (("mezo_guided", u), ("mezo_greedy", zs[order[0]])):
        method, _ = oracle(name, PROBLEM, known, pool=pool)
        told = iter([*losses, 3.0, 1.0])
        method.step(lambda told=told: torch.tensor(next(told)))
        torch.testing.assert_close(method.engine.theta, THETA - 0.01 * 8.0 * direction)
        assert method.forwards == method.forward_passes == pool + 2
