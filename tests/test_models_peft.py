"""Adapters: every type on every family, saved and loaded again, and the wrong ones refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from zopeft.errors import InputError
from zopeft.models import PEFT, attach, load_adapter
from zopeft.models.prefixes import real_prefix

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = SMALL | {"num_key_value_heads": 2}


def configs():
    """Model families; some with a head size that the hidden size does not tell."""
    import transformers as t

    return {
        "llama": t.LlamaConfig(**GROUPED, head_dim=16),
        "qwen2": t.Qwen2Config(**GROUPED),
        "qwen3": t.Qwen3Config(**GROUPED, head_dim=16),
        "mistral": t.MistralConfig(**GROUPED),
        "gemma2": t.Gemma2Config(**GROUPED, head_dim=16),
        "phi": t.PhiConfig(**SMALL),
        "phi3": t.Phi3Config(**GROUPED, pad_token_id=0),
        "gpt_neox": t.GPTNeoXConfig(**SMALL),
        "gpt2": t.GPT2Config(vocab_size=99, n_embd=32, n_layer=3, n_head=4),
        "opt": t.OPTConfig(
            vocab_size=99,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        ),
    }


FAMILIES = (
    "llama qwen2 qwen3 mistral gemma2 phi phi3 gpt_neox gpt2 opt".split()  # noqa: SIM905
)
FIRST = [*list(PEFT)[:8], "layernorm", "prefix", "prompt", "p-tuning"]
"""Types that go on every family; the others are tried in test_peft_matrix.py."""
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def build(family="llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configs()[family]).eval()


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def test_registry():
    assert len(PEFT) == 41
    assert all(PEFT.about(name) for name in PEFT)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_defaults(family):
    model = attach(build(family), "lora")
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16, 0.0)
    fused = {"gpt2": {"c_attn"}, "phi3": {"qkv_proj"}, "gpt_neox": {"query_key_value"}}
    assert set(config.target_modules) == fused.get(family, {"q_proj", "v_proj"})
    assert all("lora_" in name for name in trainable(model))
    assert len(trainable(model)) == 3 * 2 * len(config.target_modules)
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_starts_as_real_tokens(family):
    """A prefix made of tokens acts as the tokens themselves, to rounding."""
    model = build(family)
    tokens = torch.tensor([[3, 50, 21, 4, 17]])
    with torch.no_grad():
        expected = model(torch.cat([tokens.expand(2, 5), IDS], 1)).logits[:, 5:]
    values, layers, _ = real_prefix(model, tokens)
    assert layers == 3
    tuned = attach(model, "prefix")
    (weight,) = trainable(tuned).values()
    with torch.no_grad():
        weight.copy_(values)
        for options in ({}, {"use_cache": False}, {"attention_mask": torch.ones_like(IDS)}):
            logits = tuned(IDS, **options).logits
            torch.testing.assert_close(logits, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FIRST)
def test_attach(name, family):
    if family == "gpt2" and name in ("loha", "lokr"):
        with pytest.raises(InputError, match=f"peft {name}"):
            attach(build(family), name)
        return
    one = trainable(attach(build(family), name, seed=3))
    two = trainable(attach(build(family), name, seed=3))
    other = trainable(attach(build(family), name, seed=4))
    assert one
    assert all(p.dtype == torch.float32 for p in one.values())
    assert all(torch.equal(p, two[n]) for n, p in one.items())
    # IA3, VeRA and norms start at constants: there is nothing to draw.
    assert name in ("ia3", "vera", "layernorm") or any(
        not torch.equal(p, other[n]) for n, p in one.items()
    )


def test_attach_leaves_the_generator():
    model = build()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    attach(model, "prefix", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", [*FIRST, "cartridge", "hra"])
def test_saved_and_loaded(name, tmp_path):
    model = attach(build(), name, seed=1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    loaded = load_adapter(build(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-6, rtol=0)
    assert trainable(loaded)
    before = loaded(IDS).logits.sum()
    before.backward()
    assert all(p.grad is not None for p in trainable(loaded).values())
    assert not loaded.training


def test_options():
    model = attach(build(), "lora", {"rank": 2, "alpha": 4, "targets": ["o_proj"], "dropout": 0.1})
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.1)
    assert set(config.target_modules) == {"o_proj"}
    model = attach(build(), "prefix", {"tokens": 3, "real": False})
    assert trainable(model)["prompt_encoder.default.embedding.weight"].shape[0] == 3


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("lorra", {}, "did you mean 'lora'"),
        ("lora", {"rnk": 8}, "unknown option, got 'rnk'; did you mean 'rank'"),
        ("lora", {"targets": ["no_such"]}, "peft lora: "),
        ("lora", {"r": 0}, "peft lora: "),
        ("prefix", {"tokens": 0}, "at least 1"),
    ],
)
def test_faulty_options(name, options, match):
    with pytest.raises(InputError, match=match) as caught:
        attach(build(), name, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "bits"), [("Linear8bitLt", "8-bit"), ("Linear4bit", "4-bit")])
def test_dora_on_quantised_weights_is_refused(kind, bits):
    """It would fail, or compute something else, from the second forward on."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = build()
    layer = getattr(bitsandbytes.nn, kind)(32, 64, bias=False)
    model.model.layers[0].self_attn.q_proj = layer
    with pytest.raises(InputError, match=f"peft dora: does not run on {bits}"):
        attach(model, "dora")


def refused(folder, match, model=None):
    with pytest.raises(InputError, match=match) as caught:
        load_adapter(model or build(), folder)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_adapter_there(tmp_path):
    refused("./nowhere", "no such folder")
    refused("some/adapter", "hub can't be reached")
    refused(tmp_path, "no adapter_config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "no peft_type")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(tmp_path, "no adapter_model.safetensors")


def test_corrupt_adapter(tmp_path):
    attach(build(), "lora").save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    refused(tmp_path, "corrupt weights")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": ')
    refused(tmp_path, "unreadable JSON")


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt", "ia3"])
def test_adapter_of_another_shape(name, tmp_path):
    attach(build(), name).save_pretrained(tmp_path)
    import transformers as t

    for change in (
        {"hidden_size": 64, "head_dim": 32},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
    ):
        if name == "prompt" and "num_hidden_layers" in change:
            continue  # a prompt fits any model of its width
        other = AutoModelForCausalLM.from_config(
            t.LlamaConfig(**GROUPED | {"head_dim": 16} | change)
        )
        refused(tmp_path, "was made for another model", other)


def test_adapter_of_another_family(tmp_path):
    attach(build(), "lora").save_pretrained(tmp_path)
    refused(tmp_path, "was made for another model", build("gpt2"))


def test_adapter_that_names_another_base(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        build().save_pretrained(folder)
    one = AutoModelForCausalLM.from_pretrained(folders[0])
    attach(one, "lora").save_pretrained(tmp_path / "adapter")
    two = AutoModelForCausalLM.from_pretrained(folders[1])
    refused(tmp_path / "adapter", "was made for .*one, the model here is .*two", two)
    # A base that was moved is known by its shapes alone.
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(Path("/gone/away"))
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    two = AutoModelForCausalLM.from_pretrained(folders[1])
    assert trainable(load_adapter(two, tmp_path / "adapter"))
