"""Which layers the defaults take: those of the text's attention, on every kind of model."""

import pytest
import torch
import transformers as t
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from zopeft.blocks import discover
from zopeft.errors import InputError, ZopeftWarning
from zopeft.models import PEFT, attach
from zopeft.models.targets import QUERY_VALUE, as_config, find_targets, linear_layers

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
}
GROUPS = {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
STATES = {"mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_n_heads": 4}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
FAMILIES = {
    "deepseek_v2": (
        LATENT | EXPERTS | {"q_lora_rank": None, "first_k_dense_replace": 1},
        {"q_proj", "kv_b_proj"},
    ),
    "deepseek_v3": (LATENT | EXPERTS | GROUPS | {"q_lora_rank": 16}, {"q_b_proj", "kv_b_proj"}),
    "glm4_moe_lite": (LATENT | EXPERTS | GROUPS | {"q_lora_rank": 16}, {"q_b_proj", "kv_b_proj"}),
    "minicpm3": (LATENT | {"q_lora_rank": 16}, {"q_b_proj", "kv_b_proj"}),
    "mamba": ({"state_size": 8}, {"in_proj", "x_proj"}),
    "mamba2": (
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        {"in_proj"},
    ),
    "jamba": (
        {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
        {"q_proj", "v_proj"},
    ),
    "falcon_h1": (
        STATES | {"head_dim": 8, "mamba_d_ssm": 32, "mamba_d_head": 8},
        {"q_proj", "v_proj"},
    ),
    "bamba": (
        STATES | {"mamba_d_head": 16, "attn_layer_indices": [1]},
        {"q_proj", "v_proj"},
    ),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48},
        {"q_proj", "v_proj"},
    ),
    "jetmoe": (
        {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        {"kv_proj"},
    ),
    "mixtral": ({"num_local_experts": 4}, {"q_proj", "v_proj"}),
    "rwkv": ({"attention_hidden_size": 32}, {"attention.receptance", "attention.value"}),
    "bloom": ({"n_layer": 2, "n_head": 4}, {"query_key_value"}),
    "falcon": ({}, {"query_key_value"}),
    "gptj": (OLD | {"rotary_dim": 4}, {"q_proj", "v_proj"}),
    "gpt_bigcode": (OLD, {"c_attn"}),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, {"Wqkv"}),
    "phi3": ({}, {"qkv_proj"}),
    "bart": (
        {
            "d_model": 32,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
        },
        {"self_attn.q_proj", "self_attn.v_proj"},
    ),
    "gemma3n_text": (
        {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 61,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [48] * 4,
        },
        {"q_proj", "v_proj"},
    ),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
CHOOSERS = ("expert", "router", ".gate.", "vision", "cross")


def build(family):
    own, _ = FAMILIES[family]
    plain = {"bart", "bloom", "falcon", "gptj", "gpt_bigcode", "mpt"}  # They know no grouped heads.
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads" or family not in plain}
    if family in ("mpt", "mamba", "mamba2", "rwkv"):  # nor any heads, or only their own.
        sizes = {k: v for k, v in sizes.items() if "heads" not in k}
    torch.manual_seed(0)
    with torch.random.fork_rng():
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**sizes, **own})).eval()


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def unread(tuned):
    """Returns the LoRA layers that a text's forward pass does not call."""
    left = {name for name, _ in tuned.named_modules() if name.endswith("lora_B.default")}
    assert left
    hooks = [
        module.register_forward_hook(lambda *_, name=name: left.discard(name))
        for name, module in tuned.named_modules()
        if name in left
    ]
    with torch.no_grad():
        tuned(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    return left


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_on_the_attention_and_read(family, recwarn):
    tuned = attach(build(family), "lora")
    assert set(tuned.peft_config["default"].target_modules) == FAMILIES[family][1]
    assert not unread(tuned)
    assert not [n for n in trainable(tuned) if any(word in n for word in CHOOSERS)]
    assert not [w for w in recwarn if issubclass(w.category, ZopeftWarning)]


@pytest.mark.parametrize("name", ["dora", "adalora", "ia3", "vera", "loha", "lokr", "layernorm"])
@pytest.mark.parametrize("family", ["deepseek_v3", "mamba"])
def test_other_types_stay_off_experts(name, family):
    names = trainable(attach(build(family), name, {"r": 4} if name == "vera" else {}))
    assert names
    assert not [n for n in names if any(word in n for word in CHOOSERS)]


def test_layers_of_two_kinds_each_have_their_own():
    """Kimi Linear: linear attention in some layers, latent attention in the others."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["kimi_linear"]())
    found = find_targets(model, QUERY_VALUE)
    kinds = {}
    for name in found:
        layer = name.split(".")[2]
        kinds.setdefault(layer, set()).add(name.rpartition(".")[2])
    assert set(map(frozenset, kinds.values())) == {
        frozenset({"q_proj", "v_proj"}),
        frozenset({"q_proj", "kv_b_proj"}),
    }


def test_without_a_known_attention_the_fallback_is_told():
    model = build("phi3")
    for layer in model.model.layers:
        layer.self_attn.strange = layer.self_attn.qkv_proj
        del layer.self_attn.qkv_proj
    with pytest.warns(ZopeftWarning, match="its 8 linear layers are taken") as caught:
        tuned = attach(model, "lora")
    assert "down_proj, gate_up_proj, o_proj, strange" in str(caught[0].message)
    assert not [name for name in trainable(tuned) if "lm_head" in name]


def test_the_fallback_leaves_routers_and_experts():
    for family in ("mixtral", "deepseek_v3"):
        names = linear_layers(build(family))
        assert names
        assert not [n for n in names if any(word in n + "." for word in (*CHOOSERS, "lm_head"))]


def test_no_linear_layer_is_one_line():
    model = build("phi3")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(InputError, match="peft lora: Phi3ForCausalLM has no linear layer"):
        attach(model, "lora")


def text(**own):
    return {**SIZES, "head_dim": 8, **own}


def multimodal():
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tower = small | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    clip = t.CLIPVisionConfig(**tower)
    qwen = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    mllama = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_output_dim": 48,
        "intermediate_layers_indices": [0, 1],
        "supported_aspect_ratios": [[1, 1]],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    return {
        "gemma3": lambda: t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(text_config=text(), vision_config=tower, mm_tokens_per_image=4)
        ),
        "llava": lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(text_config=t.LlamaConfig(**SIZES), vision_config=clip)
        ),
        "qwen2_vl": lambda: t.Qwen2VLForConditionalGeneration(
            t.Qwen2VLConfig(text_config=SIZES | {"rope_parameters": rope}, vision_config=qwen)
        ),
        "mllama": lambda: t.MllamaForConditionalGeneration(
            t.MllamaConfig(
                text_config=SIZES | {"cross_attention_layers": [1]}, vision_config=mllama
            )
        ),
    }


@pytest.mark.parametrize("family", multimodal())
def test_a_multimodal_wrapper_is_tuned_in_its_text_alone(family):
    torch.manual_seed(0)
    model = multimodal()[family]().eval()
    towers = [name for name, _ in model.named_modules() if "vis" in name]
    assert towers
    tuned = attach(model, "lora")
    names = trainable(tuned)
    assert names and not unread(tuned)
    assert all("language_model" in name for name in names)
    norms = [b.name for b in discover(attach(multimodal()[family]().eval(), "layernorm"))]
    assert norms and all("language_model" in name for name in norms)


@pytest.mark.parametrize(
    "name", [*list(PEFT)[:12], "beft", "hra", "layernorm", "prefix", "p-tuning"]
)
def test_every_type_on_a_multimodal_wrapper(name):
    """All that is trained is the text's, and reaches the logits."""
    options = {"r": 4} if name == "vera" else {}
    torch.manual_seed(0)
    tuned = attach(multimodal()["gemma3"]().eval(), name, options)
    names = trainable(tuned)
    assert names and not [n for n in names if "vision" in n or "projector" in n]
    with torch.no_grad():
        before = tuned(input_ids=IDS).logits
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        assert not torch.equal(tuned(input_ids=IDS).logits, before)


def test_targets_are_written_as_short_as_they_can_be_told():
    model = multimodal()["gemma3"]()
    found = find_targets(model, QUERY_VALUE)
    assert len(found) == 4
    pattern = r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
    assert as_config(model, found) == pattern
    assert as_config(build("phi3"), find_targets(build("phi3"), QUERY_VALUE)) == ["qkv_proj"]
    assert as_config(model, found[:1]) == found[:1]
