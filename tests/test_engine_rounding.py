"""Probes of 16-bit weights: each is shown moved as often as the step says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_pairs import DTYPES, SEED, same, weights
from test_engine import lora
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import zopeft
from zopeft.engine import Direction, Engine, LowRank, Rows, layers
from zopeft.errors import InputError
from zopeft.journal import Journal, header_of, rebuild
from zopeft.kernels import BACKENDS, plain
from zopeft.kernels.form import Form
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import FAMILIES, Noise, step_seed
from zopeft.noise.dither import dither_run, dither_words
from zopeft.training.recording import Recording

SIXTEEN_BIT = [torch.bfloat16, torch.float16]
EPS = 1e-3
COUNT = 20_000


def test_words_are_addressed_even_and_apart():
    words = dither_run(SEED, 7, 0, 1001)
    assert torch.equal(dither_run(SEED, 7, 333, 77), words[333:410])
    assert words.min() >= 0 and words.max() < 2**32
    # Of this release: a run that goes on must find the same ones.
    assert words[:3].tolist() == [3376000821, 3809919595, 42400964]
    assert not (words == dither_run(SEED + 1, 7, 0, 1001)).any()
    assert not (words == dither_run(SEED + 2**32, 7, 0, 1001)).any()
    assert not (words == dither_run(SEED, 8, 0, 1001)).any()
    many = dither_run(SEED, 7, 0, 2**18)
    ones = ((many.unsqueeze(1) >> torch.arange(8, 32)) & 1).double().mean(0)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 2**9
    uniform = many.double() / 2**32 - 0.5
    for other in (
        uniform[1:],
        uniform[4:],
        *(Noise(f).at_elements(SEED, 7, 0, 2**18).double() for f in sorted(FAMILIES)),
    ):
        product = (other * uniform[: len(other)]).mean() / other.square().mean().sqrt()
        assert abs(product) < 5 / 12**0.5 / 2**9


def test_words_of_one_element_are_even_over_seeds():
    seeds = [step_seed(1, step) for step in range(1500)]
    for keys in (seeds, range(1500)):
        pairs = torch.cat([dither_words(key, 9, torch.tensor([[5, 6]])) for key in keys])
        uniform = pairs.double() / 2**32 - 0.5
        assert (uniform.mean(0).abs() < 5 / 12**0.5 / 1500**0.5).all()
        assert abs((uniform[:, 0] * uniform[:, 1]).mean()) < 5 / 12 / 1500**0.5


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("value", [1.0, -1.0, 40.0, 0.3, 2.0**-16])
def test_the_mean_of_probes_is_the_step(dtype, value):
    """Over seeds, and for one direction, the rounding adds nothing on average."""
    weight, u = torch.full((COUNT,), value).to(dtype), torch.full((COUNT,), 0.8)
    for step in (EPS, -EPS):
        shown = plain.perturb(weight, u, step, dither_run(SEED, 3, 0, COUNT))
        assert shown.dtype == dtype
        moved = shown.double() - weight.double()
        spread = moved.std().item() / COUNT**0.5
        exact = u[0].double() * torch.tensor(step).double()
        assert abs(moved.mean() - exact) < 5 * spread + 1e-3 * EPS


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_all_weights_are_probed_as_often_as_their_step_says(dtype):
    """To nearest, a weight is moved by no step below half its ulp, in however many steps."""
    kernels, weight = PlainKernels(Noise()), torch.linspace(8, 15, 2000).to(dtype)
    moved, share, ulp = {}, 0.0, torch.finfo(dtype).eps * 8
    for rounding in plain.ROUNDINGS:
        kernels.rounding, moved[rounding] = rounding, torch.zeros(2000)
        for seed in range(150):
            out = torch.empty_like(weight)
            kernels.shift(step_seed(0, seed), 3, 0, weight, EPS, None, out)
            moved[rounding] += (out != weight).float() / 150
    for seed in range(150):
        u = Noise().at_elements(step_seed(0, seed), 3, 0, 2000)
        share += (EPS * u.abs() / ulp).clamp(max=1).mean().item() / 150
    assert moved["nearest"].mean() < 0.7 * share
    assert moved["stochastic"].mean() == pytest.approx(share, rel=0.04)
    if dtype == torch.bfloat16:
        assert not moved["nearest"].any() and share < 0.02
        assert moved["stochastic"].count_nonzero() > 1000


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_the_same_words_for_both_sides_give_the_quietest_difference(dtype):
    """Where a step is below half an ulp, at most one of the sides moves a weight."""
    u = Noise().at_elements(SEED, 3, 0, COUNT)
    # In either dtype the numbers of this size are four standard deviations apart.
    weight = torch.full((COUNT,), 1.5 if dtype == torch.float16 else 0.3).to(dtype)
    words, other = dither_run(SEED, 3, 0, COUNT), dither_run(SEED + 1, 3, 0, COUNT)
    step = 2.0**-12 if dtype == torch.float16 else 2.0**-11

    def noise(words_of_minus):
        plus = plain.perturb(weight, u, step, words).double()
        minus = plain.perturb(weight, u, -step, words_of_minus).double()
        return plus - minus - 2 * step * u.double(), (plus != weight) & (minus != weight)

    found = {
        name: noise(w)
        for name, w in {
            "same": words,
            "antithetic": 2**32 - 1 - words,
            "independent": other,
        }.items()
    }
    power = {name: difference.square().mean() for name, (difference, _) in found.items()}
    assert power["same"] < 0.9 * power["independent"] < 0.8 * power["antithetic"]
    below_half = u.abs() * step < (torch.finfo(dtype).eps * (1 if weight[0] > 1 else 0.25)) / 2
    assert below_half.sum() > COUNT / 2
    assert not found["same"][1][below_half].any()
    assert found["antithetic"][1][below_half].any()


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"triton"}))
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_matrices_and_runs_are_rounded_by_the_same_words(backend, dtype):
    if backend == "numba":
        pytest.importorskip("numba")
    kernels, weight = BACKENDS[backend](Noise()), weights(60 * 50, dtype).view(60, 50)
    whole, again = torch.empty_like(weight), torch.empty_like(weight)
    kernels.shift(SEED, 5, 0, weight.view(-1), EPS, None, whole.view(-1))
    rows = torch.tensor([0, 3, 4, 59])
    assert same(kernels.shift_rows(SEED, 5, rows, weight, EPS, None), whole[rows])
    form = Form(torch.ones(60), None)
    kernels.shift_matrix(SEED, 5, weight, slice(0, 60), EPS, form, again)
    assert same(again, whole)
    expected = plain.perturb(
        weight,
        Noise().at_elements(SEED, 5, 0, 3000).view(60, 50),
        EPS,
        dither_run(SEED, 5, 0, 3000),
    )
    assert same(whole, expected)
    kernels.rounding = "nearest"
    kernels.shift(SEED, 5, 0, weight.view(-1), EPS, None, again.view(-1))
    assert same(again, whole) == (dtype == torch.float32)


class Own(nn.Module):
    """A matrix that its parent multiplies by, outside of any forward of its own."""

    def __init__(self):
        super().__init__()
        self.holder = nn.Module()
        self.holder.weight = nn.Parameter(torch.empty(40, 64))

    def forward(self, x):
        return x @ self.holder.weight.t()


def eye(dtype):
    """What a linear layer turns into its own weight."""
    return torch.eye(64, dtype=dtype)


PARTS = {
    "linear": (lambda: nn.Sequential(nn.Linear(64, 40, bias=False)), eye),
    "wide": (lambda: nn.Sequential(nn.Linear(64, 40, bias=False)), eye),
    "rows": (lambda: nn.Sequential(nn.Linear(64, 40, bias=False)), eye),
    "embedding": (lambda: nn.Sequential(nn.Embedding(64, 40)), lambda dtype: torch.arange(64)),
    "embedding, low rank": (
        lambda: nn.Sequential(nn.Embedding(64, 40)),
        lambda dtype: torch.arange(64),
    ),
    "parent's": (Own, eye),
}


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("part", PARTS)
def test_layers_show_what_the_definition_says(part, dtype, monkeypatch):
    """A step to nearest would leave most of these weights alone."""
    model, inputs = PARTS[part][0]().to(dtype), PARTS[part][1](dtype)
    weight = next(model.parameters())
    with torch.no_grad():
        weight.copy_(torch.linspace(2, 3.9, weight.numel()).view(weight.shape))
    kept, blocks = weight.detach().clone(), zopeft.discover(model)
    shape = {"rows": Rows(torch.ones(40)), "embedding, low rank": LowRank(2)}.get(part)
    if part == "wide":
        monkeypatch.setattr(layers, "CHUNK", 320)
    engine = Engine(blocks, carrier="modules", shapes={} if shape is None else {0: shape})
    step = 0.3 * float(torch.finfo(dtype).eps)
    if part == "parent's":
        with engine.perturbed(Direction(77), step):
            model(inputs)
        assert engine.settle()
    with torch.no_grad(), engine.perturbed(Direction(77), step):
        seen = model(inputs)
    seen = seen if "embedding" in part else seen.t()
    u = Noise().at_elements(77, blocks[0].address, 0, kept.numel()).view(kept.shape)
    if part == "embedding, low rank":
        left, right = engine.forms.of(0, Direction(77), kept.device).factors
        u = Form(None, (left, right)).direction(None, slice(0, 64))
    words = dither_run(77, blocks[0].address, 0, kept.numel())
    assert same(seen.contiguous(), plain.perturb(kept, u, step, words))
    assert same(weight.detach(), kept)
    still = plain.perturb(kept, u, step) == kept
    assert still.float().mean() > 0.8
    assert 0.05 < (seen != kept)[still].float().mean() < 0.3


NORMS = {
    "rms": LlamaRMSNorm,
    "layer": lambda width: nn.LayerNorm(width, bias=False),
    "torch": nn.RMSNorm,
    "t5": T5LayerNorm,
}


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("name", NORMS)
def test_norms_take_their_step_in_fp32_where_that_is_the_same_layer(name, dtype):
    model = nn.Sequential(NORMS[name](64)).to(dtype)
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(2, 40, 64))
    blocks = zopeft.discover(model)
    engine, step = Engine(blocks, carrier="modules"), 1e-2
    x = Noise().at_elements(1, 2, 0, 640).view(2, 5, 64).to(dtype)
    whole, weights = model(x), {b.name: b.parameter.detach().clone() for b in blocks}
    seen = {}
    for rounding in ("stochastic", "nearest"):
        engine.rounding = rounding
        with engine.perturbed(Direction(77), step):
            seen[rounding] = model(x)
        assert seen[rounding].dtype == dtype
    assert torch.equal(model(x), whole)
    assert all(same(b.parameter.detach(), weights[b.name]) for b in blocks)
    exact = {}
    for block in blocks:
        u = Noise().at_elements(77, block.address, 0, 64)
        if name == "t5":
            # It rounds its input to the weight's dtype, and would not in fp32.
            words = dither_run(77, block.address, 0, 64)
            exact[block.owners[0].leaf] = plain.perturb(weights[block.name], u, step, words)
        else:
            exact[block.owners[0].leaf] = weights[block.name].float() + step * u
    expected = torch.func.functional_call(model[0], exact, (x,)).to(dtype)
    assert torch.equal(seen["stochastic"], expected)
    moved = {key: (out != whole).any(dim=(0, 1)).float().mean() for key, out in seen.items()}
    assert moved["stochastic"] > moved["nearest"] + 0.2 or name == "t5"


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_an_adapter_in_16_bits_is_rounded_from_its_master(dtype):
    model = lora(dtype)
    engine = Engine(zopeft.discover(model))
    with engine.perturbed(Direction(5), EPS):
        seen = {block.name: block.parameter.detach().clone() for block in engine.blocks}
    for block in engine.blocks:
        u = Noise().at_elements(5, block.address, 0, block.numel).view(block.shape)
        words = dither_run(5, block.address, 0, block.numel)
        assert same(seen[block.name], plain.perturb(block.parameter.detach(), u, EPS, words))


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_quantisation_scales_move_by_less_than_they_are_apart(dtype):
    model = nn.Module()
    model.q_proj = nn.Module()
    model.q_proj.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))
    model.q_proj.register_buffer("qzeros", torch.zeros(4, 1, dtype=torch.int32))
    model.q_proj.register_buffer("scales", torch.ones(40, 100, dtype=dtype))
    engine = Engine(zopeft.discover(model, space="scales"))
    scales, step = model.q_proj.scales, 0.05 * float(torch.finfo(dtype).eps)
    u = Noise().at_elements(3, engine.blocks[0].address, 0, 4000).view(40, 100)
    for rounding, most in (("nearest", 0.0), ("stochastic", 0.1)):
        engine.rounding = rounding
        with engine.perturbed(Direction(3), step):
            moved = scales.double() - 1
        share = (moved != 0).double().mean()
        assert most * 0.4 <= share <= most
        # Downwards from one the numbers are half as far apart.
        slope = float((moved * u).mean()) / step
        assert abs(slope - (rounding == "stochastic")) < 0.25
    assert torch.equal(scales, torch.ones(40, 100, dtype=dtype))


def net(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).to(dtype)


def walk(model, method, steps):
    """Makes some steps; returns the weights after each."""
    found = []
    for step in range(steps):
        x = Noise().at_elements(9, step + 1, 0, 32).view(4, 8).to(model[0].weight.dtype)
        method.step(lambda x=x: (model(x) - 1).float().square().mean())
        found.append([p.detach().clone() for p in model.parameters()])
    return found


def method_of(model):
    return zopeft.MeZO(zopeft.discover(model), lr=1e-2, eps=EPS, carrier="modules")


def old_journal(folder):
    """A run of three steps as they were made before probes were dithered, and six of it."""
    model = net()
    method = method_of(model)
    method.engine.rounding = "nearest"
    header = replace(header_of(method), settings={})
    with Journal.create(folder / "journal.bin", header) as journal:
        for _ in range(3):
            walk(model, method, 1)
            journal.append(method.last_record)
    state = method.state_dict()
    del state["zopeft"]["rounding"]
    weights = [p.detach().clone() for p in model.parameters()]
    return state, weights, walk(model, method, 3)


def test_a_run_of_an_older_journal_goes_on_as_it_began(tmp_path):
    state, weights, after = old_journal(tmp_path)
    ends = {}
    for way in ("rebuilt", "resumed", "restored", "dithered"):
        model = net()
        method = method_of(model)
        assert method.engine.rounding == "hashed"
        if way == "restored":
            with torch.no_grad():
                for parameter, weight in zip(model.parameters(), weights, strict=True):
                    parameter.copy_(weight)
            method.load_state_dict(state)
        elif way == "resumed":
            recording = Recording(tmp_path, True, 1)
            recording.open()
            recording.begin(method, {"clip": 0.0}, "")
            for step in range(3):
                method.replay(recording.due(step))
            recording.close()
        else:
            rebuild(tmp_path / "journal.bin", method)
        assert method.steps == 3 and method.engine.rounding == "nearest"
        if way == "dithered":
            method.engine.rounding = "stochastic"
        ends[way] = walk(model, method, 3)[-1]
    for way, end in ends.items():
        equal = all(same(a, b) for a, b in zip(end, after[-1], strict=True))
        assert equal == (way != "dithered")


def test_a_run_whose_updates_were_rounded_by_philox_goes_on_so(tmp_path):
    ends = {}
    for rounding in plain.ROUNDINGS[:2]:
        folder = tmp_path / rounding
        folder.mkdir()
        model = net()
        method = method_of(model)
        method.engine.rounding = rounding
        with Journal.create(folder / "journal.bin", header_of(method)) as journal:
            for _ in range(3):
                walk(model, method, 1)
                journal.append(method.last_record)
        again = net()
        rebuilt = method_of(again)
        rebuild(folder / "journal.bin", rebuilt)
        assert rebuilt.engine.rounding == rounding
        pairs = zip(model.parameters(), again.parameters(), strict=True)
        assert all(same(a, b) for a, b in pairs)
        ends[rounding] = walk(model, method, 3)[-1]
        after = walk(again, rebuilt, 3)[-1]
        assert all(same(a, b) for a, b in zip(ends[rounding], after, strict=True))
    assert not all(same(a, b) for a, b in zip(*ends.values(), strict=True))


def test_no_update_is_rounded_by_the_words_of_its_probes():
    """Both are even, and together as if they were drawn apart: 16 by 16 cells, chi squared."""
    kernels, count = PlainKernels(Noise()), 1 << 16
    weight = torch.zeros(count, dtype=torch.bfloat16)
    cells = torch.zeros(256)
    for seed in range(16):
        key = step_seed(0, seed)
        probe = kernels.words(key, 3, 0, count, weight)
        update = kernels.updated_words(key, 3, 0, count, weight)
        assert not torch.equal(probe, update)
        cells += torch.bincount((probe >> 28) * 16 + (update >> 28), minlength=256)
    expected = 16 * count / 256
    # 255 degrees of freedom: 255 on average, 22.6 their standard deviation.
    assert 120 < float(((cells - expected) ** 2 / expected).sum()) < 400


def test_the_journal_of_a_run_says_how_its_probes_are_rounded(tmp_path):
    method = method_of(net())
    header = header_of(method, settings={"batch": 4})
    assert header.settings == {"rounding": "hashed", "batch": 4}
    assert header.rounding == "hashed" and replace(header, settings={}).rounding == "nearest"
    with pytest.raises(InputError, match="unknown rounding, got 'up'"):
        method.engine.rounding = "up"


def test_fp32_runs_know_no_rounding():
    ends = []
    for rounding in plain.ROUNDINGS:
        model = net(torch.float32)
        method = method_of(model)
        method.engine.rounding = rounding
        ends.append(walk(model, method, 3)[-1])
    assert all(same(a, b) for end in ends for a, b in zip(end, ends[0], strict=True))
    assert not any(
        same(a, b) for a, b in zip(ends[0], net(torch.float32).parameters(), strict=True)
    )
