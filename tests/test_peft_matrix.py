"""Every PEFT type on four families: the loss falls, and plain PEFT takes the saved folder."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from peft import PeftModel
from transformers import AutoModelForCausalLM

import zopeft
from zopeft.errors import InputError
from zopeft.models import PEFT, attach, load_adapter
from zopeft.optim.defaults import LORA, PROMPT, defaults

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.2}
CONFIGS = {
    "llama": lambda: t.LlamaConfig(**GATED),
    "qwen2": lambda: t.Qwen2Config(**GATED),
    "opt": lambda: t.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.2, max_position_embeddings=32
    ),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=61,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
REFUSED = {("loha", "gpt2"), ("lokr", "gpt2")}
"""PEFT has no layer of these types for GPT-2's Conv1D."""
PROMPTS = ("prefix", "prompt", "p-tuning")
RATES = {"adalora": (0.2, 0.1), "loha": (1e-2, 1e-2), "layernorm": (1e-2, 1e-2)}
"""lr and eps where the curvature at the start, products of small numbers or norms of one,
says little about the way ahead; elsewhere the proposed lr is used."""
STEPS = 12
IDS = (torch.arange(3 * 8).view(3, 8) * 7 + 5) % 61
CASES = [(name, family) for name in PEFT for family in CONFIGS]


def build(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def loss_of(model):
    with torch.no_grad():
        return float(model(input_ids=IDS, labels=IDS).loss)


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def tune(model, lr="auto", eps=None):
    """A few steps on one batch."""
    method = zopeft.MeZO(zopeft.discover(model), lr=lr, eps=eps, seed=3)
    first = loss_of(model)
    for _ in range(STEPS):
        method.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    assert method.skipped == 0
    return first, loss_of(model)


def test_every_case_is_there():
    assert len(CASES) == 12 * 4
    assert {name for name, _ in REFUSED} | set(PROMPTS) < set(PEFT)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_tuned_saved_and_loaded(name, family, tmp_path):
    options = {"r": 4} if name == "vera" else {}
    if (name, family) in REFUSED:
        with pytest.raises(InputError, match=f"peft {name}: ") as caught:
            attach(build(family), name, options)
        assert "\n" not in str(caught.value)
        return
    model = attach(build(family), name, options, seed=1)
    first, last = tune(model, *RATES.get(name, ()))
    assert last < first
    expected = logits_of(model)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build(family), tmp_path).eval()
    torch.testing.assert_close(logits_of(plain), expected, atol=1e-5, rtol=1e-5)
    if name not in PROMPTS:
        merged = plain.merge_and_unload()
        torch.testing.assert_close(logits_of(merged), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PEFT)
def test_the_defaults_of_a_type_converge(name):
    """Without a measured rate: the loss falls by far more than rounding in a few steps."""
    model = attach(build("llama"), name, {"r": 4} if name == "vera" else {}, seed=1)
    found = defaults(zopeft.discover(model))
    if name in ("lora", "dora", "rslora"):
        assert found == LORA
    assert (found == PROMPT) == (name in PROMPTS)
    first, last = tune(model, found.lr, found.eps)
    assert last < first - 1e-3


@pytest.mark.parametrize("family", CONFIGS)
def test_b_alone(family, tmp_path):
    model = attach(build(family), "lora", {"train": "B"}, seed=1)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    blocks = zopeft.discover(model)
    assert {block.role for block in blocks} == {"lora_B"}
    first, last = tune(model)
    assert last < first
    moved = {
        n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])
    }
    assert moved == set(blocks.names)
    model.save_pretrained(tmp_path)
    loaded = load_adapter(build(family), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="train must be AB or B, got 'A'"):
        attach(build(family), "lora", {"train": "A"})


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_modules_to_save(family, tmp_path):
    model = attach(build(family), "lora", {"modules_to_save": ["lm_head"]}, seed=1)
    blocks = zopeft.discover(model)
    assert [b.key for b in blocks if b.role == "head"] == ["lm_head.weight"]
    first, last = tune(model)
    assert last < first
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(build(family), tmp_path).eval()
    torch.testing.assert_close(logits_of(plain), logits_of(model), atol=1e-5, rtol=1e-5)


def test_adalora_keeps_its_rank_and_the_loss():
    base = build("llama")
    before = loss_of(base)
    model = attach(base, "adalora", {"rank": 4})
    config = model.peft_config["default"]
    assert (config.init_r, config.target_r) == (4, 4)
    assert loss_of(model) == before
    with pytest.raises(InputError, match="peft adalora: the rank stays fixed") as caught:
        attach(build("llama"), "adalora", {"init_r": 8, "target_r": 4})
    assert "\n" not in str(caught.value)
