"""The scales of quantised layers: found, probed without a trace, updated, replayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.errors import InputError, RunError
from zopeft.methods import METHODS

bitsandbytes = pytest.importorskip("bitsandbytes")

IDS = (torch.arange(2 * 9).view(2, 9) * 5 + 3) % 97
KINDS = ("8bit", "nf4", "fp4")
LINEARS = 2 * 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.15,
        )
    ).save_pretrained(path)
    return path


def load(folder, kind, double=False):
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=double,
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def loss(model):
    return model(input_ids=IDS, labels=IDS).loss


def bits(blocks):
    return [block.data.clone() for block in blocks]


def same(blocks, before):
    return all(torch.equal(b.data, a) for b, a in zip(blocks, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_block_a_layer(folder, kind):
    blocks = zopeft.discover(load(folder, kind), space="scales")
    assert len(blocks) == LINEARS
    assert blocks.space == "scales"
    first = blocks[0]
    leaf = "SCB" if kind == "8bit" else "weight.absmax"
    assert first.name == f"model.layers.0.self_attn.q_proj.{leaf}"
    assert (first.role, first.base_role, first.layer) == ("scales", "q_proj", 0)
    assert first.key == "model.layers.0.self_attn.q_proj.weight"
    assert first.shape == (64,)
    assert len({block.address for block in blocks}) == LINEARS
    some = zopeft.discover(load(folder, kind), space="scales", select="down_proj")
    assert [b.base_role for b in some] == ["down_proj"] * 2
    assert "scales" in str(blocks)


@pytest.mark.parametrize("forward_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_moves_the_output_and_changes_no_bit(folder, kind, forward_first):
    model = load(folder, kind)
    blocks = zopeft.discover(model, space="scales")
    if forward_first:
        logits(model)
    engine = Engine(blocks)
    before, codes = bits(blocks), [p.detach().clone() for p in model.parameters()]
    direction = Direction(11, torch.linspace(0.5, 2.0, len(blocks)))
    seen = {}
    for step in (0.05, -0.05):
        with engine.perturbed(direction, step):
            seen[step] = logits(model)
            for index, (block, old) in enumerate(zip(blocks, before, strict=True)):
                noise = engine.noise.at_elements(11, block.address, 0, block.numel, old.device)
                factor = noise.mul_(direction.scales[index]).mul_(step).add_(1.0)
                assert torch.equal(block.data, factor.view(old.shape) * old)
    assert same(blocks, before)
    clean = logits(model)
    assert not torch.equal(seen[0.05], clean)
    assert not torch.equal(seen[0.05], seen[-0.05])
    with pytest.raises(KeyboardInterrupt), engine.perturbed(direction, 0.1):
        logits(model)
        raise KeyboardInterrupt
    assert same(blocks, before)
    assert torch.equal(logits(model), clean)
    assert all(torch.equal(p, c) for p, c in zip(model.parameters(), codes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_the_probes_direction(folder, kind):
    model = load(folder, kind)
    blocks = zopeft.discover(model, space="scales")
    engine = Engine(blocks)
    before = bits(blocks)
    with engine.perturbed(Direction(5), 0.02):
        shown = bits(blocks)
    engine.update(Direction(5), 0.0)
    assert same(blocks, before)
    engine.update(Direction(5), 0.02)
    assert same(blocks, shown)
    engine.update(Direction(5), -1e9)
    assert all(bool((block.data >= 0).all()) for block in blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_several_directions_are_summed_before_the_sign_is_kept(folder, kind):
    blocks = zopeft.discover(load(folder, kind), space="scales")
    engine = Engine(blocks)
    before = [block.data.float().clone() for block in blocks]
    factors = []
    for seed in (5, 6):
        with engine.perturbed(Direction(seed), 1e-3):
            moved = [b.data.float() / d - 1.0 for b, d in zip(blocks, before, strict=True)]
        factors.append([1e3 * each for each in moved])
    engine.update([Direction(5), Direction(6)], torch.tensor([[0.5], [-0.2]]), 0.9)
    for block, start, one, two in zip(blocks, before, *factors, strict=True):
        expected = start * (0.9 + 0.5 * one - 0.2 * two).clamp(min=0)
        torch.testing.assert_close(block.data.float(), expected, rtol=0, atol=2e-3 * start.max())


def test_statistics(folder):
    blocks = zopeft.discover(load(folder, "8bit"), space="scales")
    mean, variance = Engine(blocks).statistics()
    expected = torch.stack([block.data.double().mean() for block in blocks])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(
        variance, torch.stack([block.data.double().var() for block in blocks])
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tuned_saved_loaded_and_replayed(folder, kind, tmp_path):
    model = load(folder, kind)
    method = zopeft.MeZO(zopeft.discover(model, space="scales"), lr="auto", clip=3.0, seed=2)
    assert method.eps == 1e-2
    with torch.no_grad():
        first = float(loss(model))
    records = []
    for _ in range(12):
        method.step(lambda: loss(model))
        records.append(method.last_record)
    with torch.no_grad():
        assert float(loss(model)) < first
    expected = logits(model)
    twin = load(folder, kind)
    again = zopeft.MeZO(zopeft.discover(twin, space="scales"), lr="auto", seed=2)
    for record in records:
        again.replay(record)
    assert same(again.blocks, bits(method.blocks))
    model.save_pretrained(tmp_path)
    loaded, _ = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    kept = zopeft.discover(loaded.eval(), space="scales")
    assert same(kept, bits(method.blocks))
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_lr_zero_changes_no_bit(folder, kind):
    model = load(folder, kind)
    method = zopeft.MeZO(zopeft.discover(model, space="scales"), lr=0.0)
    before = bits(method.blocks)
    method.step(lambda: loss(model))
    assert same(method.blocks, before)


def test_what_cannot_be_tuned(folder):
    with pytest.raises(InputError, match="no quantised layer whose scales are known"):
        zopeft.discover(LlamaForCausalLM.from_pretrained(folder), space="scales")
    with pytest.raises(InputError, match="scales are quantised themselves"):
        zopeft.discover(load(folder, "nf4", double=True), space="scales")
    with pytest.raises(InputError, match=r"use an adapter .* or the quantisation scales"):
        zopeft.discover(load(folder, "nf4"), space="full")


def test_packed_scales_are_refused(folder):
    """On processors with AVX-512 for bfloat16, a first 4-bit forward rounds the scales."""
    model = load(folder, "nf4")
    model.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(InputError, match="rounded and packed by a forward"):
        zopeft.discover(model, space="scales")


def test_scales_that_moved_are_noticed(folder):
    model = load(folder, "nf4")
    engine = Engine(zopeft.discover(model, space="scales"))
    state = model.model.layers[1].mlp.up_proj.weight.quant_state
    state.absmax = state.absmax.clone()
    with (
        pytest.raises(RunError, match="have moved since they were discovered"),
        engine.perturbed(Direction(1), 0.1),
    ):
        pass


class Weight(torch.Tensor):
    """Stands for a tensor subclass of torchao."""


def stand_in(kind, dtype=torch.float16):
    """A layer with the attributes of another package's."""
    layer, scale = nn.Module(), torch.rand(4, 8, dtype=torch.float32).to(dtype)
    if kind == "gptq":
        layer.register_buffer("qweight", torch.zeros(4, 8, dtype=torch.int32))
        layer.register_buffer("qzeros", torch.zeros(4, 1, dtype=torch.int32))
        layer.register_buffer("scales", scale)
    elif kind == "hqq":
        layer.W_q = nn.Parameter(torch.zeros(4, 8, dtype=torch.uint8), requires_grad=False)
        layer.meta = {"scale": scale, "zero": torch.zeros_like(scale)}
    else:
        weight = torch.zeros(4, 8).as_subclass(Weight)
        weight.scale = scale
        layer.register_parameter("weight", None)
        layer._parameters["weight"] = weight
    return layer, scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gptq", "hqq", "torchao"])
def test_layers_of_other_packages_by_their_attributes(kind, dtype):
    torch.manual_seed(0)
    model = nn.Module()
    model.q_proj, scale = stand_in(kind, dtype)
    blocks = zopeft.discover(model, space="scales")
    assert len(blocks) == 1
    assert blocks[0].base_role == "q_proj"
    assert blocks[0].data.data_ptr() == scale.data_ptr()
    engine, before = Engine(blocks), scale.clone()
    with engine.perturbed(Direction(3), 0.1):
        assert not torch.equal(scale, before)
    assert torch.equal(scale, before)
    engine.update(Direction(3), 0.0)
    assert torch.equal(scale, before)
    for step in range(200):
        engine.update(Direction(step), 1e-4 * (-1) ** step)
    # Far below the spacing of 16-bit numbers, and still it moves.
    assert not torch.equal(scale, before)
    torch.testing.assert_close(scale.float(), before.float(), rtol=0.05, atol=0)


def test_qzo_is_mezo_on_the_scales_and_nothing_else(folder):
    ends = []
    for name, options in (("mezo", {"clip": 2.0}), ("qzo", {})):
        model = load(folder, "nf4")
        blocks = zopeft.discover(model, space="scales")
        before = bits(blocks)
        method = METHODS[name](blocks, lr=1e-4, seed=1, **options)
        for _ in range(3):
            method.step(lambda m=model: loss(m))
        assert not same(blocks, before)
        ends.append(bits(blocks))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    with pytest.raises(InputError, match="QZO: cannot serve these weights, got 'full'"):
        METHODS["qzo"](zopeft.discover(torch.nn.Linear(3, 3)), lr=1e-3)
