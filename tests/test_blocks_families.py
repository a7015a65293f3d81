"""Every model family: each parameter is in exactly one block, with the right words."""

import math

import pytest
import torch
from torch import nn

from zopeft.blocks import FAMILIES, discover

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj"}
PLAIN = {"up_proj", "down_proj"}
NORMS = {"input_norm", "post_attention_norm"}
OUTER = {"embed", "final_norm"}
LLAMA = ATTENTION | GATED | NORMS | OUTER


def biased(*roles):
    return {f"{role}_bias" for role in roles}


# family -> (config class, other sizes, blocks a layer, blocks outside, roles, tied)
FAMILY = {
    "llama": ("LlamaConfig", {}, 9, 3, LLAMA | {"head"}, 0),
    "mistral": ("MistralConfig", {}, 9, 3, LLAMA | {"head"}, 0),
    "qwen2": ("Qwen2Config", {}, 12, 3, LLAMA | {"head"} | biased("q_proj", "k_proj", "v_proj"), 0),
    "qwen3": ("Qwen3Config", {"head_dim": 4}, 11, 3, LLAMA | {"head", "q_norm", "k_norm"}, 0),
    "gemma": ("GemmaConfig", {"head_dim": 4, "tie_word_embeddings": True}, 9, 2, LLAMA, 1),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 4, "tie_word_embeddings": True},
        11,
        2,
        LLAMA | {"pre_feedforward_norm", "post_feedforward_norm"},
        1,
    ),
    "phi": (
        "PhiConfig",
        {},
        14,
        5,
        ATTENTION
        | PLAIN
        | OUTER
        | {"input_norm", "head"}
        | biased(*ATTENTION, *PLAIN, "input_norm", "final_norm", "head"),
        0,
    ),
    "phi3": (
        "Phi3Config",
        {},
        6,
        3,
        {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", "head"} | NORMS | OUTER,
        0,
    ),
    "opt": (
        "OPTConfig",
        {"ffn_dim": 24, "word_embed_proj_dim": 8},
        16,
        6,
        ATTENTION
        | PLAIN
        | NORMS
        | OUTER
        | {"position", "project_in", "project_out"}
        | biased(*ATTENTION, *PLAIN, *NORMS, "final_norm"),
        1,
    ),
    "gpt2": (
        "GPT2Config",
        {"n_positions": 32},
        12,
        4,
        {"qkv_proj", "o_proj", "position"}
        | PLAIN
        | NORMS
        | OUTER
        | biased("qkv_proj", "o_proj", *PLAIN, *NORMS, "final_norm"),
        1,
    ),
    "generic": (
        "GPTNeoXConfig",
        {},
        12,
        4,
        {"qkv_proj", "o_proj", "head"}
        | PLAIN
        | NORMS
        | OUTER
        | biased("qkv_proj", "o_proj", *PLAIN, *NORMS, "final_norm"),
        0,
    ),
}


def tiny(family, **sizes):
    transformers = pytest.importorskip("transformers")
    name, own, *_ = FAMILY[family]
    config = getattr(transformers, name)(**{**SIZES, **own, **sizes})
    return transformers.AutoModelForCausalLM.from_config(config)


def test_every_family_is_tested():
    assert set(FAMILY) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILY)
def test_every_parameter_is_in_one_block(family):
    _, _, per_layer, outside, roles, tied = FAMILY[family]
    model = tiny(family)
    blocks = discover(model)
    assert len(blocks) == 2 * per_layer + outside
    assert blocks.names == [name for name, _ in model.named_parameters()]
    assert [b.parameter_name for b in blocks] == blocks.names
    assert blocks.numel == sum(p.numel() for p in model.parameters())
    assert all(b.parameter is p for b, p in zip(blocks, model.parameters(), strict=True))
    assert {b.role for b in blocks} == roles
    assert sum(len(b.owners) > 1 for b in blocks) == tied
    places = sum(len(b.owners) for b in blocks)
    assert places == len(list(model.named_parameters(remove_duplicate=False)))
    assert all(b.key == b.name and b.base_role == b.role for b in blocks)
    assert len({b.address for b in blocks}) == len(blocks)


@pytest.mark.parametrize("family", FAMILY)
def test_layers_and_depths(family):
    _, _, per_layer, outside, _, _ = FAMILY[family]
    blocks = discover(tiny(family, num_hidden_layers=3))
    assert blocks.num_layers == 3
    for layer in range(3):
        inside = [b for b in blocks if b.layer == layer]
        assert len(inside) == per_layer
        assert all(b.depth == layer / 2 for b in inside)
        assert all(f".{layer}." in b.name for b in inside)
    assert sum(b.layer is None and b.depth is None for b in blocks) == outside


@pytest.mark.parametrize("family", FAMILY)
def test_kinds_fit_shapes_and_modules(family):
    blocks = discover(tiny(family))
    for block in blocks:
        owner = block.owners[0].module
        assert block.shape == tuple(block.parameter.shape)
        assert block.numel == math.prod(block.shape)
        if block.kind == "linear":
            assert isinstance(owner, nn.Linear)
            assert block.shape == (owner.out_features, owner.in_features)
        elif block.kind == "conv1d":
            assert block.shape == (owner.nx, owner.nf)
        elif block.kind == "embedding":
            assert block.shape == (owner.num_embeddings, owner.embedding_dim)
        else:
            assert block.kind == "vector"
            assert len(block.shape) == 1
    kinds = {b.role: b.kind for b in blocks}
    assert kinds["embed"] == "embedding"
    assert kinds["down_proj"] == ("conv1d" if family == "gpt2" else "linear")


def test_a_tied_weight_is_one_block_with_both_owners():
    blocks = discover(tiny("opt"))
    tied = next(b for b in blocks if len(b.owners) > 1)
    assert tied.role == "embed"
    assert tied.kind == "embedding"
    assert [o.module_name for o in tied.owners] == ["model.decoder.embed_tokens", "lm_head"]
    assert all(o.module._parameters[o.leaf] is tied.parameter for o in tied.owners)


def test_experts_are_tensors_with_their_role():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2)
    blocks = discover(transformers.AutoModelForCausalLM.from_config(config))
    assert {(b.role, b.kind) for b in blocks if "experts" in b.name} == {
        ("gate_up_proj", "tensor"),
        ("down_proj", "tensor"),
    }
    assert {b.role for b in blocks if b.name.endswith("mlp.gate.weight")} == {"router"}


def test_an_unknown_module_falls_back_to_its_type():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(4, 3)
            self.scaling = nn.LayerNorm(3)
            self.strange = nn.Parameter(torch.zeros(2, 3, 4))
            self.stack = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
            self.again = self.stack[0]

    blocks = discover(Odd())
    assert {b.name: b.role for b in blocks} == {
        "strange": "other",
        "table.weight": "embed",
        "scaling.weight": "norm",
        "scaling.bias": "norm_bias",
        "stack.0.weight": "other",
        "stack.0.bias": "other",
        "stack.1.weight": "other",
        "stack.1.bias": "other",
    }
    assert [b.layer for b in blocks if b.name.startswith("stack")] == [0, 0, 1, 1]
    # A module held under two names is still one owner: its forward runs through one object.
    assert all(len(b.owners) == 1 for b in blocks)
    assert {b.name: b.kind for b in blocks}["strange"] == "tensor"
    assert blocks.architecture == "Odd"
    assert blocks.base_name == ""
