"""What is trained and what is refused; addresses; the table."""

import subprocess
import sys

import pytest
import torch
from test_blocks_families import tiny
from torch import nn

import zopeft.blocks.block as block_module
import zopeft.blocks.discovery as discovery
from zopeft.blocks import Blocks, discover, keep_trainable
from zopeft.errors import InputError


def test_frozen_parameters_are_no_blocks():
    model = tiny("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    blocks = discover(model)
    assert len(blocks) == 20
    assert "model.embed_tokens.weight" not in blocks.names


def test_select_refuses_to_leave_trainable_parameters_out():
    model = tiny("llama")
    with pytest.raises(InputError, match=r"3 trainable parameters are in no block") as caught:
        discover(model, select=r"layers")
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert name in str(caught.value)
    with pytest.raises(InputError, match=r"19 trainable .* and 11 more; freeze them"):
        discover(model, select="q_proj")


@pytest.mark.parametrize(
    ("select", "count"), [("q_proj", 2), ("q_proj, v_proj", 4), (r"layers\.1\.mlp", 3), ("norm", 5)]
)
def test_keep_trainable_then_select(select, count):
    model = tiny("llama")
    assert keep_trainable(model, select) == count
    assert len(discover(model, select=select)) == count
    assert len(discover(model)) == count


def test_select_that_fits_nothing_offers_roles():
    with pytest.raises(InputError, match=r"did you mean .*'q_proj'"):
        discover(tiny("llama"), select="q_prj")
    with pytest.raises(InputError, match="neither roles nor a regular expression"):
        keep_trainable(tiny("llama"), "q_proj[")


def test_a_trainable_complex_tensor_is_named():
    model = nn.Linear(2, 2)
    model.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"1 trainable parameters .*phase \(complex64\)"):
        discover(model)


def test_nothing_trainable():
    with pytest.raises(InputError, match="no trainable parameter; call requires_grad_"):
        discover(tiny("llama").requires_grad_(False))


def test_unknown_space():
    with pytest.raises(InputError, match=r"unknown space, got 'ful'; did you mean 'full'"):
        discover(tiny("llama"), space="ful")


def test_quantised_weights_are_refused_in_full_space():
    model = tiny("llama")
    weight = torch.zeros(16, 16, dtype=torch.int8)
    model.model.layers[0].self_attn.q_proj.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(InputError, match=r"quantised .*q_proj\.weight.*use an adapter"):
        discover(model)
    # Its norms can be asked for, as long as nothing else is left trainable.
    keep_trainable(model, "norm")
    assert len(discover(model, select="norm")) == 5


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_really_quantised_model_takes_adapters_only(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tiny("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(**{bits: True})
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    with pytest.raises(InputError, match="quantised"):
        discover(model)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    blocks = discover(peft.get_peft_model(model, lora))
    assert [b.role for b in blocks] == ["lora_A", "lora_B"] * 2
    assert blocks[2].key == "model.layers.1.self_attn.q_proj.weight"
    assert blocks.base_name == str(tmp_path)


def test_addresses_come_from_names_alone():
    blocks = discover(tiny("llama"))
    by_name = {b.name: b.address for b in blocks}
    other = tiny("llama", hidden_size=32)
    keep_trainable(other, "q_proj")
    for block in discover(other):
        assert block.address == by_name[block.name]
    assert all(0 <= address < 2**32 for address in by_name.values())
    assert by_name["lm_head.weight"] == block_module.address_of("lm_head.weight")


def test_colliding_addresses_are_told_apart_whatever_is_frozen(monkeypatch):
    # A hash of two bits: collisions everywhere, 16 places once salted.
    def weak(name, salt=0):
        return (sum(name.encode()) + 5 * salt) % 64

    monkeypatch.setattr(block_module, "address_of", weak)
    monkeypatch.setattr(discovery, "address_of", weak)
    model = tiny("llama")
    names = [name for name, _ in model.named_parameters()]
    assert len({weak(name) for name in names}) < len(names)
    full = {b.name: b.address for b in discover(model)}
    assert len(set(full.values())) == len(names)
    model.model.layers[0].requires_grad_(False)
    assert all(full[b.name] == b.address for b in discover(model))


def test_the_table():
    blocks = discover(tiny("gemma"))
    lines = str(blocks).splitlines()
    assert len(lines) == len(blocks) + 4
    assert lines[0].split() == ["block", "role", "layer", "kind", "shape", "elements", "tied", "to"]
    wanted = "model.embed_tokens.weight embed - embedding 64 x 16 1,024 lm_head.weight"
    assert " ".join(lines[2].split()) == wanted
    assert lines[-1].startswith("20 blocks of 11 roles in 2 layers, ")
    assert lines[-1].endswith("1 tied; GemmaForCausalLM, space full")
    rows = blocks.rows()
    assert len(rows) == len(blocks)
    assert rows[0]["tied"] == ["lm_head.weight"]
    assert rows[0]["shape"] == [64, 16]
    assert rows[0]["dtype"] == "float32"


def test_blocks_are_a_sequence():
    blocks = discover(tiny("llama"))
    part = blocks[:3]
    assert isinstance(part, Blocks)
    assert part.names == blocks.names[:3]
    assert part.model is blocks.model
    assert blocks.named("lm_head.weight").role == "head"
    assert blocks[0] in blocks
    with pytest.raises(InputError, match=r"did you mean 'lm_head\.weight'"):
        blocks.named("lm_head.wieght")


def test_the_package_is_light():
    code = "import sys, zopeft.blocks, zopeft.finetuner; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
