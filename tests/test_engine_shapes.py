"""Shaped directions: what they are, that both carriers and both backends give the same ones."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_engine import batch, bits, full, gpt2, logits, lora, prefix, same_bits

import zopeft
from zopeft.engine import Direction, Engine, LowRank, Rows, Subspace, layers
from zopeft.engine.shapes import fingerprint
from zopeft.errors import InputError
from zopeft.noise import Noise
from zopeft.noise.address import LEFT_STREAM, RIGHT_STREAM

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODELS = {"full": full, "gpt2": gpt2, "lora": lora}
SPACES = [("full", "modules"), ("full", "flat"), ("gpt2", "modules"), ("lora", "flat")]
NEAR = 2e-6
"""Largest difference between fp32 logits of about 0.3 with a side path and with written weights."""


def basis(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator))[0]


def subspace(rows, columns, mix=0.0):
    r = min(3, rows, columns)
    return Subspace(basis(rows, r), basis(columns, min(r + 1, columns), 1), mix)


APART = {torch.bfloat16: 0.04, torch.float16: 5e-3}
"""Of the way that the probe moves the logits. The copy is rounded to nearest and a probe
stochastically: up to 0.022 and 0.0028 were seen, with and without AVX."""


SHAPES = {
    "low_rank": lambda rows, columns: LowRank(3),
    "subspace": subspace,
    "subspace mixed": lambda rows, columns: subspace(rows, columns, 0.3),
    "subspace left": lambda rows, columns: replace(subspace(rows, columns, 0.3), right=None),
    "subspace right": lambda rows, columns: replace(subspace(rows, columns, 0.3), left=None),
    "subspace all noise": lambda rows, columns: subspace(rows, columns, 1.0),
    "rows": lambda rows, columns: Rows(torch.linspace(0.2, 3.0, rows)),
}


PROBED = [(torch.float32, kind) for kind in sorted(SHAPES)]
PROBED += [(d, kind) for d in DTYPES[1:] for kind in ("low_rank", "subspace mixed", "rows")]
"""Every shape in fp32, and in 16 bits one of each class: rounding sees the direction alone."""


def shapes_for(blocks, kind):
    return {i: SHAPES[kind](*b.shape) for i, b in enumerate(blocks) if len(b.shape) == 2}


def engine_of(model, kind, carrier="auto", **options):
    blocks = zopeft.discover(model)
    shapes = shapes_for(blocks, kind)
    assert len(shapes) >= 8
    return Engine(blocks, carrier=carrier, shapes=shapes, **options)


def numbers(noise, seed, address, count, stream):
    counters = torch.arange(-(-count // noise.span))
    return noise.at_counters(seed, counters, address, stream)[:count]


def direction_of(engine, index, seed):
    """The plain way: u of one block, as the formulas say."""
    block, noise = engine.blocks[index], engine.noise
    z = noise.at_elements(seed, block.address, 0, block.numel).view(block.shape)
    shape = engine.shapes.get(index)
    if shape is None:
        return z
    rows, columns = block.shape
    if isinstance(shape, LowRank):
        left = numbers(noise, seed, block.address, rows * shape.rank, LEFT_STREAM)
        right = numbers(noise, seed, block.address, columns * shape.rank, RIGHT_STREAM)
        left, right = left.view(rows, -1), right.view(columns, -1)
        return left @ right.t() / math.sqrt(shape.rank)
    if isinstance(shape, Rows):
        weights = shape.weights / shape.weights.square().mean().sqrt()
        return weights.unsqueeze(1) * z
    left = torch.eye(rows) if shape.left is None else shape.left
    right = torch.eye(columns) if shape.right is None else shape.right
    inner = (left.shape[1], right.shape[1])
    own = numbers(noise, seed, block.address, math.prod(inner), LEFT_STREAM).view(inner)
    own = math.sqrt(block.numel / math.prod(inner)) * left @ own @ right.t()
    return math.sqrt(1 - shape.mix) * own + math.sqrt(shape.mix) * z


def moved_copy(model, engine, direction, step):
    """A second model whose weights are written."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for index, block in enumerate(engine.blocks):
        u = direction_of(engine, index, direction.seed)
        if direction.scales is not None:
            u = u * direction.scales[index]
        weight = parameters[block.parameter_name]
        weight.data = (weight.data.float() + step * u).to(weight.dtype)
    return twin


def scales_of(engine):
    return torch.linspace(0.5, 2.0, len(engine.blocks))


@pytest.mark.parametrize(("dtype", "kind"), PROBED)
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_a_probe_is_the_moved_model_and_changes_no_bit(space, carrier, kind, dtype):
    model = MODELS[space](dtype)
    engine = engine_of(model, kind, carrier)
    before, clean = bits(model), logits(model)
    direction = Direction(123, scales_of(engine))
    for step in (0.02, -0.02):
        with engine.perturbed(direction, step):
            seen = logits(model)
        expected = logits(moved_copy(model, engine, direction, step))
        assert (seen - clean).abs().max() > 10 * NEAR
        if dtype == torch.float32:
            torch.testing.assert_close(seen, expected, rtol=0, atol=NEAR)
        else:
            # Of all logits together: the largest difference hangs on how a machine rounds.
            assert (seen - expected).norm() < APART[dtype] * (expected - clean).norm()
    assert same_bits(model, before)
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_the_update_goes_where_the_probe_looked(space, carrier, kind):
    model = MODELS[space]()
    engine = engine_of(model, kind, carrier)
    direction = Direction(77, scales_of(engine))
    twin = moved_copy(model, engine, direction, 0.03)
    with engine.perturbed(direction, 0.03):
        probed = logits(model)
    engine.update(direction, 0.03)
    torch.testing.assert_close(logits(model), probed, rtol=0, atol=2e-6)
    for name, weight in twin.named_parameters():
        found = model.get_parameter(name)
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_backends_and_carriers_give_the_same_bits(kind, dtype):
    pytest.importorskip("numba")
    results = []
    for backend, carrier in (("plain", "modules"), ("numba", "modules"), ("numba", "flat")):
        model = full(dtype)
        engine = engine_of(model, kind, carrier, backend=backend)
        direction = Direction(9, scales_of(engine))
        engine.update(direction, -0.01, 0.99)
        assert not same_bits(model, bits(full(dtype)))
        if carrier == "modules":
            results.append((bits(model), logits_under(model, engine, direction)))
        elif dtype == torch.float32:
            assert same_bits(model, results[0][0])
    assert all(torch.equal(results[1][0][n], weight) for n, weight in results[0][0].items())
    assert torch.equal(results[0][1], results[1][1])


def logits_under(model, engine, direction):
    with engine.perturbed(direction, 0.02):
        return logits(model)


@pytest.mark.parametrize("carrier", ["modules", "flat"])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_zero_coefficients_change_no_bit(kind, carrier):
    model = full(torch.bfloat16)
    engine = engine_of(model, kind, carrier)
    before = bits(model)
    engine.update(Direction(1, scales_of(engine)), 0.0)
    some = torch.zeros(len(engine.blocks))
    some[-1] = 0.5
    engine.update(Direction(1), some)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == [engine.blocks[-1].parameter_name]


@pytest.mark.parametrize("family", ["gaussian", "binomial", "rademacher"])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_the_energy_of_a_direction_is_its_number_of_elements(kind, family):
    model = torch.nn.Sequential(torch.nn.Linear(13, 19, bias=False))
    blocks = zopeft.discover(model)
    model[0].weight.data.zero_()
    engine = Engine(blocks, family, "modules", shapes={0: SHAPES[kind](19, 13)})
    energy = []
    for seed in range(500):
        engine.update(Direction(seed), 1.0)
        energy.append(float(model[0].weight.detach().square().sum()))
        model[0].weight.data.zero_()
    energy = torch.tensor(energy)
    error = float(energy.std()) / math.sqrt(len(energy)) + 1e-3
    assert abs(float(energy.mean()) - 13 * 19) < 4 * error


def test_elements_of_a_low_rank_direction_are_uncorrelated_with_heavy_tails():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False))
    engine = Engine(zopeft.discover(model), shapes={0: LowRank(2)})
    draws = []
    for seed in range(4000):
        left, right = engine.forms.factors(0, Direction(seed))
        draws.append((left @ right).flatten())
    assert torch.linalg.matrix_rank(draws[0].view(4, 3)) == 2
    torch.testing.assert_close(draws[7].view(4, 3), direction_of(engine, 0, 7))
    draws = torch.stack(draws)
    covariance = draws.t() @ draws / len(draws)
    torch.testing.assert_close(covariance, torch.eye(12), rtol=0, atol=0.12)
    # The fourth moment of a normal number is 3; of a sum of r products over sqrt(r), 3 + 6 / r.
    assert float(draws.pow(4).mean()) == pytest.approx(6.0, rel=0.15)


def test_a_low_rank_probe_makes_no_twin_of_a_matrix(monkeypatch):
    model = gpt2()
    engine = engine_of(model, "low_rank", "modules")
    twins, made = engine.carriers[0]._twins, []
    real = twins.make

    def make(number, weight, *args, **kwargs):
        made.append(weight.ndim)
        return real(number, weight, *args, **kwargs)

    monkeypatch.setattr(twins, "make", make)
    with engine.perturbed(Direction(5), 0.02):
        logits(model)
    # Biases beside them and the norms have isotropic noise: 2 layers of 4 and 2, and ln_f.
    assert made == [1] * (2 * (4 + 2 * 2) + 2)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_large_matrices_in_chunks_are_the_whole(kind, monkeypatch):
    direction = Direction(31)
    model = full()
    engine = engine_of(model, kind, "modules")
    whole = logits_under(model, engine, direction)
    monkeypatch.setattr(layers, "CHUNK", 100)
    torch.testing.assert_close(logits_under(model, engine, direction), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_gradients_at_the_perturbed_weights_reach_the_parameters(space, carrier, kind):
    model = MODELS[space]()
    engine = engine_of(model, kind, carrier)
    direction = Direction(8, scales_of(engine))
    ids = batch()["input_ids"]
    twin = moved_copy(model, engine, direction, 0.03)
    twin(input_ids=ids, labels=ids).loss.backward()
    with engine.perturbed(direction, 0.03):
        model(input_ids=ids, labels=ids).loss.backward()
    expected, checked = dict(twin.named_parameters()), 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-6)
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_project_is_the_inner_product_with_the_direction(kind, monkeypatch):
    from zopeft.engine import projection as module

    engine = engine_of(full(), kind)
    monkeypatch.setattr(module, "CHUNK", 200)
    for index, block in enumerate(engine.blocks):
        gradient = torch.randn(block.shape)
        expected = (direction_of(engine, index, 6) * gradient).double().sum()
        found = engine.project(block, 6, gradient)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("backend", ["plain", "numba"])
@pytest.mark.parametrize("carrier", ["modules", "flat"])
@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_statistics_are_those_of_the_blocks_after_an_update(kind, carrier, backend):
    model = full()
    engine = engine_of(model, kind, carrier, backend=backend)
    first, _ = engine.statistics()
    engine.update(Direction(4), 0.05)
    mean, variance = engine.statistics()
    assert bool((mean != first).all())
    for index, block in enumerate(engine.blocks):
        weight = block.parameter.detach().double()
        assert mean[index].item() == pytest.approx(weight.mean().item(), abs=1e-12)
        assert variance[index].item() == pytest.approx(weight.var().item(), rel=1e-9, abs=1e-15)


def test_a_state_does_not_depend_on_where_shaped_blocks_lie():
    model = lora(torch.bfloat16)
    blocks = zopeft.discover(model)
    plain = Engine(blocks)
    start = plain.state_dict()["master.0"]
    plain.update(Direction(1), 0.01)
    state = plain.state_dict()
    assert not torch.equal(state["master.0"], start)
    some = {1: LowRank(2), 2: LowRank(2)}
    shaped = Engine(blocks, shapes=some)
    shaped.load_state_dict(state)
    assert torch.equal(shaped.state_dict()["master.0"], state["master.0"])
    assert shaped.carriers[0].places.offsets != plain.carriers[0].places.offsets
    masters = [c.master[o : o + b.numel] for c, b, o in _places(shaped)]
    expected = [c.master[o : o + b.numel] for c, b, o in _places(plain)]
    assert all(torch.equal(a, b) for a, b in zip(masters, expected, strict=True))


def _places(engine):
    carrier = engine.carriers[0]
    return [(carrier, b, o) for b, o in zip(carrier.blocks, carrier.places.offsets, strict=True)]


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_that_do_more_than_multiply_get_a_twin():
    model = torch.nn.Sequential(Doubled(6, 5))
    blocks = zopeft.discover(model)
    engine = Engine(blocks, carrier="modules", shapes={0: LowRank(2)})
    x = torch.randn(3, 6)
    with engine.perturbed(Direction(3), 0.1), torch.no_grad():
        seen = model(x)
    u, v = (direction_of(engine, index, 3) for index in (0, 1))
    expected = 2 * (x @ (model[0].weight + 0.1 * u).t() + model[0].bias + 0.1 * v)
    torch.testing.assert_close(seen, expected)


def test_autocast_keeps_its_dtype():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    engine = Engine(zopeft.discover(model), carrier="modules", shapes={0: LowRank(2)})
    x = torch.randn(3, 6)
    with engine.perturbed(Direction(3), 0.1), torch.no_grad(), torch.autocast("cpu"):
        seen = model(x)
    assert seen.dtype == torch.bfloat16
    expected = x @ (model[0].weight + 0.1 * direction_of(engine, 0, 3)).t()
    torch.testing.assert_close(seen.float(), expected, rtol=0.02, atol=0.02)


def test_shapes_that_do_not_fit_are_refused():
    blocks = zopeft.discover(full())
    vector = next(i for i, b in enumerate(blocks) if b.kind == "vector")
    slices = zopeft.discover(prefix())
    assert slices[0].columns is not None
    for given, shapes, message in (
        (blocks, {vector: LowRank(2)}, "only a whole matrix can have a shape"),
        (slices, {0: LowRank(2)}, "only a whole matrix can have a shape"),
        (blocks, {0: subspace(5, 4)}, "needs a subspace of a matrix of"),
        (blocks, {0: Rows(torch.ones(3))}, "needs 97 row weights, got 3"),
        (blocks, {99: LowRank(2)}, "there are 20 blocks, got 99"),
    ):
        with pytest.raises(InputError, match=message):
            Engine(given, shapes=shapes)
    for make, message in (
        (lambda: LowRank(0), "rank: must be between 1 and 64, got 0"),
        (lambda: LowRank(2.5), "rank: must be a whole number"),
        (lambda: Subspace(torch.ones(4, 2), basis(4, 2)), "left: columns must be orthonormal"),
        (lambda: Subspace(basis(4, 2), basis(4, 2).t()), "right: must be a tall matrix"),
        (lambda: Subspace(None, None), "subspace: one side at least needs a basis"),
        (lambda: Subspace(basis(4, 2), basis(4, 2), 1.5), "mix: must be between 0 and 1"),
        (lambda: Rows(torch.tensor([1.0, 0.0])), "finite numbers above 0"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_fingerprints_tell_shapes_apart():
    left, right = basis(6, 2), basis(5, 2)
    changed = left.clone()
    changed[0, 0] += 1e-6
    kinds = [
        {},
        {0: LowRank(2)},
        {1: LowRank(2)},
        {0: LowRank(3)},
        {0: Subspace(left, right)},
        {0: Subspace(left, right, 0.1)},
        {0: Subspace(changed, right)},
        {0: Subspace(left.bfloat16(), right)},
        {0: Subspace(left, None)},
        {0: Subspace(None, left)},
        {0: Rows(torch.ones(4))},
    ]
    found = [fingerprint(shapes) for shapes in kinds]
    assert len(set(found)) == len(kinds) and found[0] == ""
    assert fingerprint({0: Subspace(left.clone(), right.clone())}) == found[4]


def test_blocks_without_a_shape_have_the_noise_they_always_had():
    model = full()
    blocks = zopeft.discover(model)
    before = bits(model)
    Engine(blocks, shapes={0: LowRank(2)}).update(Direction(4), 0.01)
    moved = 0
    for block in blocks[1:]:
        z = Noise().at_elements(4, block.address, 0, block.numel).view(block.shape)
        expected = before[block.parameter_name] + z * 0.01
        torch.testing.assert_close(block.parameter.detach(), expected, rtol=0, atol=1e-7)
        moved += 1
    assert moved == 19
