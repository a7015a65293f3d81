"""Blocks of PEFT models: base tensor, layer and role of everything that is trainable."""

import pytest
import torch
from test_blocks_families import tiny

from zopeft.blocks import discover
from zopeft.errors import InputError

peft = pytest.importorskip("peft")
TYPE = {"task_type": "CAUSAL_LM"}
Q = {"target_modules": ["q_proj"]}
BASE = "base_model.model."

# name -> (config class, options, number of blocks on a 2-layer Llama, roles)
KINDS = {
    "lora": ("LoraConfig", {"r": 2, **Q}, 4, {"lora_A", "lora_B"}),
    "dora": (
        "LoraConfig",
        {"r": 2, "use_dora": True, **Q},
        6,
        {"lora_A", "lora_B", "lora_magnitude"},
    ),
    "lora_parameter": (
        "LoraConfig",
        {"r": 2, "target_modules": [], "target_parameters": ["q_proj.weight"]},
        4,
        {"lora_A", "lora_B"},
    ),
    "lora_tokens": (
        "LoraConfig",
        {"r": 2, "trainable_token_indices": [1, 2], **Q},
        5,
        {"lora_A", "lora_B", "token_delta"},
    ),
    "vera": ("VeraConfig", {"r": 2, **Q}, 4, {"vera_lambda_b", "vera_lambda_d"}),
    "loha": (
        "LoHaConfig",
        {"r": 2, **Q},
        8,
        {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    ),
    "lokr": ("LoKrConfig", {"r": 2, **Q}, 4, {"lokr_w1", "lokr_w2"}),
    "adalora": (
        "AdaLoraConfig",
        {"total_step": 10, "tinit": 1, "tfinal": 1, **Q},
        6,
        {"lora_A", "lora_B", "lora_E"},
    ),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        4,
        {"ia3"},
    ),
    "ln_tuning": ("LNTuningConfig", {}, 5, {"input_norm", "post_attention_norm", "final_norm"}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}, 4, {"prefix_key", "prefix_value"}),
    "prefix_projection": (
        "PrefixTuningConfig",
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 4},
        5,
        {"prefix", "prefix_transform", "prefix_transform_bias"},
    ),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}, 1, {"prompt"}),
    "p_tuning": (
        "PromptEncoderConfig",
        {"num_virtual_tokens": 3, "encoder_hidden_size": 4},
        7,
        {"prompt", "prompt_head", "prompt_head_bias"},
    ),
    "adaption_prompt": (
        "AdaptionPromptConfig",
        {"adapter_len": 3, "adapter_layers": 2},
        4,
        {"prompt", "prompt_gate"},
    ),
}


def wrapped(kind, family="llama", **sizes):
    name, options, *_ = KINDS[kind]
    return peft.get_peft_model(tiny(family, **sizes), getattr(peft, name)(**TYPE, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_parameter_is_covered_once(kind):
    model = wrapped(kind)
    _, _, count, roles = KINDS[kind]
    before = [p.requires_grad for p in model.parameters()]
    blocks = discover(model)
    assert len(blocks) == count
    assert {b.role for b in blocks} == roles
    assert blocks.space == "adapter"
    assert blocks.adapter == "default"
    assert blocks.architecture == "LlamaForCausalLM"
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in blocks.parameters()] == [id(p) for p in trainable]
    assert blocks.numel == sum(p.numel() for p in trainable)
    assert before == [p.requires_grad for p in model.parameters()]
    assert len(set(blocks.names)) == len(blocks)


@pytest.mark.parametrize(
    "kind", ["lora", "dora", "lora_parameter", "vera", "loha", "lokr", "adalora"]
)
def test_tuners_know_their_base_tensor(kind):
    blocks = discover(wrapped(kind))
    assert {(b.key, b.base_role, b.layer, b.depth) for b in blocks} == {
        (f"model.layers.{i}.self_attn.q_proj.weight", "q_proj", i, float(i)) for i in (0, 1)
    }


def test_lora_names_and_kinds():
    first = discover(wrapped("lora"))[0]
    assert first.name == f"{BASE}model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert (first.role, first.kind, first.shape) == ("lora_A", "linear", (2, 16))
    assert first.owners[0].leaf == "weight"


@pytest.mark.parametrize(
    ("family", "target", "key", "role"),
    [
        ("opt", "out_proj", "model.decoder.layers.1.self_attn.out_proj.weight", "o_proj"),
        ("gpt2", "c_attn", "transformer.h.1.attn.c_attn.weight", "qkv_proj"),
        ("phi3", "gate_up_proj", "model.layers.1.mlp.gate_up_proj.weight", "gate_up_proj"),
        ("generic", "dense_h_to_4h", "gpt_neox.layers.1.mlp.dense_h_to_4h.weight", "up_proj"),
    ],
)
def test_lora_on_other_families(family, target, key, role):
    config = peft.LoraConfig(r=2, target_modules=[target], fan_in_fan_out=family == "gpt2", **TYPE)
    blocks = discover(peft.get_peft_model(tiny(family), config))
    assert len(blocks) == 4
    assert (blocks[3].key, blocks[3].base_role, blocks[3].layer) == (key, role, 1)


def test_lora_on_the_embedding_and_modules_to_save():
    config = peft.LoraConfig(
        r=2, target_modules=["embed_tokens"], modules_to_save=["lm_head"], **TYPE
    )
    a, b, head = discover(peft.get_peft_model(tiny("llama"), config))
    assert a.name == f"{BASE}model.embed_tokens.lora_embedding_A.default"
    assert (a.role, a.owners[0].leaf, a.kind) == ("lora_embedding_A", "default", "tensor")
    assert b.role == "lora_embedding_B"
    assert a.key == b.key == "model.embed_tokens.weight"
    assert a.base_role == "embed"
    assert head.name == f"{BASE}lm_head.modules_to_save.default.weight"
    assert (head.role, head.base_role, head.key) == ("head", "head", "lm_head.weight")
    assert head.kind == "linear"


def test_base_biases_that_lora_leaves_trainable_are_blocks():
    config = peft.LoraConfig(r=2, bias="lora_only", **Q, **TYPE)
    blocks = discover(peft.get_peft_model(tiny("qwen2"), config))
    biases = [b for b in blocks if b.role == "q_proj_bias"]
    assert len(blocks) == 6
    assert [b.key for b in biases] == [f"model.layers.{i}.self_attn.q_proj.bias" for i in (0, 1)]


def test_a_whole_module_copied_by_modules_to_save():
    config = peft.LoraConfig(r=2, modules_to_save=["mlp"], **Q, **TYPE)
    blocks = discover(peft.get_peft_model(tiny("llama"), config))
    copies = [b for b in blocks if "modules_to_save" in b.name and b.layer == 1]
    assert [(b.role, b.key) for b in copies] == [
        (role, f"model.layers.1.mlp.{role}.weight")
        for role in ("gate_proj", "up_proj", "down_proj")
    ]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi3", "opt", "gpt2"])
def test_prefix_slices_are_the_layers_keys_and_values(family):
    model = wrapped("prefix", family).eval()
    blocks = discover(model)
    assert len(blocks) == 4
    assert len(blocks.parameters()) == 1
    assert len({b.address for b in blocks}) == 1
    assert [b.columns[0] for b in blocks] == [i * blocks[0].shape[1] for i in range(4)]
    # Written through the blocks' views, read back through what PEFT hands to the layers.
    with torch.no_grad():
        for number, block in enumerate(blocks):
            block.data.fill_(float(number))
    cache = model.get_prompt(batch_size=1)
    for block, number in zip(blocks, range(4), strict=True):
        layer = cache.layers[block.layer]
        seen = layer.keys if block.role == "prefix_key" else layer.values
        assert bool((seen == number).all())
    assert [b.name for b in blocks[:2]] == [
        "prompt_encoder.default.embedding.weight[0.key]",
        "prompt_encoder.default.embedding.weight[0.value]",
    ]
    fused = family in ("phi3", "gpt2")
    assert [b.base_role for b in blocks[:2]] == (
        ["qkv_proj"] * 2 if fused else ["k_proj", "v_proj"]
    )
    assert all(f".{b.layer}." in b.key and b.key.endswith("weight") for b in blocks)


def test_only_the_active_adapter_is_found():
    model = wrapped("lora")
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=["v_proj"], **TYPE))
    assert {b.base_role for b in discover(model)} == {"q_proj"}
    model.set_adapter("second")
    blocks = discover(model)
    assert {b.base_role for b in blocks} == {"v_proj"}
    assert blocks.adapter == "second"


def test_an_adapter_injected_without_a_wrapper():
    model = tiny("llama")
    model.add_adapter(peft.LoraConfig(r=2, **Q, **TYPE))
    blocks = discover(model)
    assert len(blocks) == 4
    assert blocks.space == "adapter"
    assert blocks[0].key == "model.layers.0.self_attn.q_proj.weight"


def test_a_frozen_adapter_is_refused_with_the_way_out():
    model = wrapped("lora").requires_grad_(False)
    with pytest.raises(InputError, match=r"no trainable parameter; .*set_adapter"):
        discover(model)


def test_spaces_that_do_not_fit():
    with pytest.raises(InputError, match="carries a PEFT adapter"):
        discover(wrapped("lora"), space="full")
    with pytest.raises(InputError, match="has no adapter"):
        discover(tiny("llama"), space="adapter")
