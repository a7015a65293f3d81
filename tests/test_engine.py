"""Exact probes and updates, in every dtype, space and carrier."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.engine import Direction, Engine, layers
from zopeft.engine.modules import ModuleWeights
from zopeft.engine.shapes import LowRank
from zopeft.kernels import plain
from zopeft.noise import FAMILIES, Noise
from zopeft.noise.dither import dither_run

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TINY = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def full(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(TINY).to(dtype).eval()


def gpt2(dtype=torch.float32):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return GPT2LMHeadModel(config).to(dtype).eval()


def lora(dtype=torch.float32):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(full(dtype), config, autocast_adapter_dtype=False).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def prefix(dtype=torch.float32):
    config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    return get_peft_model(full(dtype), config).eval().to(dtype)


MODELS = {"full": full, "gpt2": gpt2, "lora": lora, "prefix": prefix}
CARRIERS = {"full": ["modules", "flat"], "gpt2": ["modules"], "lora": ["flat"], "prefix": ["flat"]}
SPACES = [(space, carrier) for space in MODELS for carrier in CARRIERS[space]]


def batch():
    return {"input_ids": torch.arange(2 * 9).view(2, 9) * 5 % 97}


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits.float()


def bits(model):
    return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}


def same_bits(model, before):
    now = bits(model)
    return now.keys() == before.keys() and all(
        now[n].dtype == before[n].dtype
        and torch.equal(now[n].view(torch.uint8), before[n].view(torch.uint8))
        for n in now
    )


def exact_vector(block, engine):
    """Whether a 16-bit block takes its step in fp32: the norms of full weights."""
    norm = block.kind == "vector" and "Norm" in type(block.owners[0].module).__name__
    modular = any(isinstance(carrier, ModuleWeights) for carrier in engine.carriers)
    return norm and modular and block.parameter.dtype != torch.float32


def perturbed_copy(model, engine, direction, step):
    """The plain way: a second model whose weights are written."""
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    for index, block in enumerate(engine.blocks):
        weight = parameters[block.parameter_name]
        noise = Noise(engine.noise.family).at_elements(
            direction.seed, block.address, 0, weight.numel()
        )
        if direction.scales is not None:
            noise = noise * direction.scales[index]
        words = dither_run(direction.seed, block.address, 0, weight.numel())
        dtype = weight.dtype
        if exact_vector(block, engine):
            module = twin.get_submodule(block.parameter_name.rpartition(".")[0])
            module.register_forward_hook(lambda module, args, out, dtype=dtype: out.to(dtype))
            weight.data, dtype = weight.data.float(), torch.float32
        shifted = plain.perturb(weight.data, noise.view(weight.shape), step, words, dtype)
        columns = slice(*block.columns) if block.columns else slice(None)
        weight.data[..., columns] = shifted[..., columns]
    return twin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_a_probe_is_the_perturbed_model_and_changes_no_bit(space, carrier, dtype):
    model = MODELS[space](dtype)
    engine = Engine(zopeft.discover(model), carrier=carrier)
    before = bits(model)
    scales = torch.linspace(0.5, 2.0, len(engine.blocks))
    direction = Direction(123, scales)
    clean = logits(model)
    for sign in (1, -1):
        step = sign * 0.05
        twin = perturbed_copy(model, engine, direction, step)
        with engine.perturbed(direction, step):
            seen = logits(model)
        assert not torch.equal(seen, clean)
        assert torch.equal(seen, logits(twin))
    assert same_bits(model, before)
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_an_exception_inside_a_probe_changes_no_bit(space, carrier, dtype):
    model = MODELS[space](dtype)
    engine = Engine(zopeft.discover(model), carrier=carrier)
    before, clean = bits(model), logits(model)

    class Boom(Exception):
        pass

    def hook(module, args):
        raise Boom

    # The failure comes from deep inside the forward pass, with some modules swapped.
    layers = [m for n, m in model.named_modules() if n.endswith(("layers.1.mlp", "h.1.mlp"))]
    assert len(layers) == 1
    handle = layers[0].register_forward_pre_hook(hook)
    with pytest.raises(Boom), engine.perturbed(Direction(5), 0.1):
        logits(model)
    handle.remove()
    with pytest.raises(KeyboardInterrupt), engine.perturbed(Direction(5), 0.1):
        raise KeyboardInterrupt
    assert same_bits(model, before)
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_zero_coefficients_change_no_bit(space, carrier, dtype):
    model = MODELS[space](dtype)
    engine = Engine(zopeft.discover(model), carrier=carrier)
    before = bits(model)
    engine.update(Direction(1), 0.0)
    engine.update(Direction(1), -0.0)
    assert same_bits(model, before)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_probe_noise_is_update_noise(space, carrier, family):
    model = MODELS[space]()
    engine = Engine(zopeft.discover(model), family, carrier)
    direction = Direction(77, torch.linspace(0.5, 2.0, len(engine.blocks)))
    with engine.perturbed(direction, 0.03):
        probed = logits(model)
    engine.update(direction, 0.03)
    torch.testing.assert_close(logits(model), probed, rtol=0, atol=1e-6)


def test_carriers_agree_bit_for_bit():
    direction = Direction(9, torch.linspace(0.5, 2, 20))
    results = []
    for carrier in ("modules", "flat"):
        model = full()
        engine = Engine(zopeft.discover(model), carrier=carrier)
        assert len(engine.blocks) == 20
        with engine.perturbed(direction, 0.02):
            probed = logits(model)
        engine.update(direction, -0.01, 0.99)
        results.append((probed, bits(model)))
        assert not same_bits(model, bits(full()))
    assert torch.equal(results[0][0], results[1][0])
    for name, weight in results[0][1].items():
        assert torch.equal(weight, results[1][1][name]), name


def test_large_matrices_in_chunks_are_the_whole(monkeypatch):
    direction = Direction(31)
    model = full()
    before, clean = bits(model), logits(model)
    with Engine(zopeft.discover(model), carrier="modules").perturbed(direction, 0.02):
        whole = logits(model)
    monkeypatch.setattr(layers, "CHUNK", 100)
    engine = Engine(zopeft.discover(model), carrier="modules")
    with engine.perturbed(direction, 0.02):
        chunked = logits(model)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)
    assert float((whole - clean).abs().max()) > 1e-3
    assert same_bits(model, before)
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("bias", [False, True])
def test_a_wide_linear_layer_writes_its_parts_in_place(monkeypatch, bias):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 50, bias=bias))
    if bias:
        model[0].bias.requires_grad_(False)
    engine = Engine(zopeft.discover(model), carrier="modules")
    x = torch.randn(2, 3, 8)
    direction = Direction(31)
    twin = perturbed_copy(model, engine, direction, 0.02)
    monkeypatch.setattr(layers, "CHUNK", 100)
    for graph in (False, True):
        with engine.perturbed(direction, 0.02), torch.set_grad_enabled(graph):
            seen = model(x)
        torch.testing.assert_close(seen, twin(x), rtol=0, atol=1e-6)
    with engine.perturbed(direction, 0.02), torch.no_grad(), torch.autocast("cpu"):
        assert model(x).dtype == torch.bfloat16


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("carrier", ["modules", "flat"])
def test_statistics_come_from_the_update_and_notice_other_writers(carrier, counted):
    model = full()
    engine = Engine(zopeft.discover(model), carrier=carrier)
    calls = []
    for name in ("statistics", "statistics_layout"):
        real = getattr(engine.kernels, name)
        monkey = lambda *a, real=real, name=name: calls.append(name) or real(*a)  # noqa: E731
        setattr(engine.kernels, name, monkey)
    first = engine.statistics()
    calls.clear()
    engine.update(Direction(1), 0.01)
    known = engine.statistics()
    assert not calls
    assert not any(torch.equal(a, b) for a, b in zip(known, first, strict=True))
    fresh = Engine(zopeft.discover(model), carrier="modules").statistics()
    for a, b in zip(known, fresh, strict=True):
        assert torch.equal(a, b)
    weight = model.lm_head.weight
    (weight.detach() if counted else weight.data).mul_(3)
    engine.adopt()
    again = engine.statistics()
    assert len(calls) == 1
    index = [b.role for b in engine.blocks].index("embed")
    assert again[1][index] == pytest.approx(9 * known[1][index].item(), rel=1e-6)


@pytest.mark.parametrize("shapes", [{}, {1: LowRank(4)}])
def test_an_update_measures_only_once_somebody_has_asked(shapes, monkeypatch):
    engine = Engine(zopeft.discover(full()), carrier="modules", shapes=shapes, backend="numba")
    measured = []
    for name in ("update", "update_matrix"):
        real = getattr(engine.kernels, name)

        def update(*arguments, real=real):
            measured.append(real(*arguments) is not None)

        monkeypatch.setattr(engine.kernels, name, update)
    one_pass = engine.kernels.map

    def mapped(formula, targets, *arguments):
        measured.extend(False for _ in targets)
        one_pass(formula, targets, *arguments)

    monkeypatch.setattr(engine.kernels, "map", mapped)
    engine.update(Direction(1), 0.01)
    assert len(measured) == len(engine.blocks) and not any(measured)
    engine.statistics()
    measured.clear()
    engine.update(Direction(2), 0.01)
    assert len(measured) == len(engine.blocks) and all(measured)


def test_a_scratch_is_used_again_but_never_while_somebody_reads_it():
    class Held(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(8, 8))

        def forward(self):
            return self.weight

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = Held(), Held(), torch.nn.Linear(8, 8, bias=False)

        def forward(self):
            one, two = self.one(), self.two()
            return self.out(one), one, two

    model = Pair()
    engine = Engine(zopeft.discover(model), carrier="modules")
    with engine.perturbed(Direction(2), 1.0), torch.no_grad():
        model.out(torch.ones(1, 8))
        _, one, two = model()
        model.out(torch.ones(1, 8))
    for seen, block in ((one, engine.blocks[0]), (two, engine.blocks[1])):
        noise = Noise().at_elements(2, block.address, 0, 64).view(8, 8)
        assert torch.equal(seen, noise)
    twins = engine.carriers[0]._twins
    assert not any(twins.arena._free.values())
    assert [len(memory) for memory in twins._memory.values()] == [64]


def test_backends_agree_bit_for_bit_in_the_engine():
    results = []
    for backend in ("plain", "numba"):
        pytest.importorskip("numba")
        model = full(torch.bfloat16)
        engine = Engine(zopeft.discover(model), carrier="modules", backend=backend)
        assert engine.kernels.name == backend
        direction = Direction(9, torch.linspace(0.5, 2, len(engine.blocks)))
        with engine.perturbed(direction, 0.02):
            probed = logits(model)
        engine.update(direction, -0.01, 0.99)
        results.append((probed, bits(model)))
        assert not same_bits(model, bits(full(torch.bfloat16)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[1][1][n], w) for n, w in results[0][1].items())


def test_frozen_and_reordered_parameters_change_nothing():
    model = full()
    engine = Engine(zopeft.discover(model))
    engine.update(Direction(4), 0.01)
    expected = bits(model)
    half = full()
    for name, parameter in half.named_parameters():
        parameter.requires_grad_("mlp" in name)
    before = bits(half)
    Engine(zopeft.discover(half)).update(Direction(4), 0.01)
    now = bits(half)
    moved = 0
    for name in now:
        if "mlp" in name:
            assert torch.equal(now[name], expected[name])
            assert not torch.equal(now[name], before[name])
            moved += 1
        else:
            assert torch.equal(now[name], before[name])
    assert moved == 6


def test_tied_weights_move_once_and_in_both_places():
    model = full()
    engine = Engine(zopeft.discover(model), carrier="modules")
    tied = [b for b in engine.blocks if len(b.owners) > 1]
    assert len(tied) == 1
    others = torch.ones(len(engine.blocks))
    others[engine.blocks.names.index(tied[0].name)] = 0.0
    noise = Noise().at_elements(3, tied[0].address, 0, 97 * 32).view(97, 32)
    weight = model.model.embed_tokens.weight.detach().clone()
    moved = {name: full() for name in ("both", "model.embed_tokens", "lm_head")}
    for name, twin in moved.items():
        if name != "both":
            # As if the two were not tied, and only one of them moved.
            twin.lm_head.weight = torch.nn.Parameter(weight.clone())
        owner = twin.get_submodule("lm_head" if name == "both" else name)
        owner.weight.data = weight + 0.1 * noise
    with engine.perturbed(Direction(3, 1.0 - others), 0.1):
        seen = logits(model)
    torch.testing.assert_close(seen, logits(moved["both"]), rtol=0, atol=1e-5)
    for name in ("model.embed_tokens", "lm_head"):
        assert float((seen - logits(moved[name])).abs().max()) > 1e-2
    engine.update(Direction(3), 0.1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model.lm_head.weight.detach(), weight + 0.1 * noise)


def test_weights_written_by_somebody_else_are_adopted():
    model = lora()
    engine = Engine(zopeft.discover(model))
    state = {n: torch.full_like(p, 0.01) for n, p in model.named_parameters() if "lora_" in n}
    model.load_state_dict(state, strict=False)
    engine.adopt()
    with engine.perturbed(Direction(1), 0.1):
        pass
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, state[name])


def test_parameters_read_by_their_parent_are_found_after_the_first_probe():
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 4))

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return x @ self.inner.weight

    model = Outer()
    engine = Engine(zopeft.discover(model), carrier="modules")
    x = torch.eye(4)
    with engine.perturbed(Direction(1), 0.1):
        missed = model(x)
    assert torch.equal(missed, torch.ones(4, 4))
    assert engine.settle()
    with engine.perturbed(Direction(1), 0.1):
        seen = model(x)
    assert not engine.settle()
    noise = Noise().at_elements(1, engine.blocks[0].address, 0, 16).view(4, 4)
    torch.testing.assert_close(seen, 1 + 0.1 * noise)
    assert torch.equal(model.inner.weight, torch.ones(4, 4))


@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_statistics_are_those_of_the_blocks(space, carrier):
    model = MODELS[space]()
    engine = Engine(zopeft.discover(model), carrier=carrier)
    mean, variance = engine.statistics()
    for index, block in enumerate(engine.blocks):
        weight = block.parameter.detach().double()
        if block.columns:
            weight = weight[..., slice(*block.columns)]
        assert mean[index].item() == pytest.approx(weight.mean().item(), abs=1e-12)
        assert variance[index].item() == pytest.approx(weight.var().item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("space", "carrier"), SPACES)
def test_gradients_at_the_perturbed_weights_reach_the_parameters(space, carrier):
    model = MODELS[space]()
    engine = Engine(zopeft.discover(model), carrier=carrier)
    direction = Direction(8, torch.linspace(0.5, 2, len(engine.blocks)))
    twin = perturbed_copy(model, engine, direction, 0.05)
    ids = batch()["input_ids"]
    twin(input_ids=ids, labels=ids).loss.backward()
    with engine.perturbed(direction, 0.05):
        model(input_ids=ids, labels=ids).loss.backward()
    expected = dict(twin.named_parameters())
    checked = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=1e-7)
            checked += 1
    assert checked >= 1


def test_project_is_the_inner_product_with_the_noise():
    model = prefix()
    engine = Engine(zopeft.discover(model))
    parameter = engine.blocks[0].parameter
    gradient = torch.randn(parameter.shape)
    noise = Noise().at_elements(6, engine.blocks[0].address, 0, parameter.numel())
    product = noise.view(parameter.shape) * gradient
    for block in engine.blocks:
        expected = product[..., slice(*block.columns)].double().sum()
        torch.testing.assert_close(engine.project(block, 6, gradient), expected)
