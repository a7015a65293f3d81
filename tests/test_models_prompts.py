"""Prefixes and prompts on models that keep other things than keys and values."""

import pytest
import torch
from peft import MultitaskPromptTuningConfig, get_peft_model
from test_models_targets import FAMILIES, IDS, SIZES, build
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError
from zopeft.models import attach, load_adapter
from zopeft.models.prefixes import real_prefix

UNFIT = {
    "mamba": "keeps no keys and values",
    "rwkv": "keeps no keys and values",
    "jamba": "layer 0 keeps no keys and values (LinearAttentionLayer)",
    "lfm2": "layer 0 keeps no keys and values (LinearAttentionLayer)",
    "deepseek_v3": "its keys and values have several shapes",
    "falcon_h1": "a forward pass fails (",
}
FIT = ("gemma3n_text", "bloom", "falcon", "mpt", "gpt_bigcode", "bart", "mixtral", "jetmoe")


@pytest.mark.parametrize("family", UNFIT)
def test_a_prefix_that_does_not_fit_is_one_line(family):
    with pytest.raises(InputError) as caught:
        attach(build(family), "prefix")
    line = str(caught.value)
    assert line.startswith("peft prefix: does not fit ") and "\n" not in line
    assert UNFIT[family] in line and line.endswith("use --lora")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("family", FIT)
def test_a_prefix_of_real_tokens_acts_as_they_do(family, tmp_path):
    model = build(family)
    tokens = torch.tensor([[3, 50, 21, 4, 17]])
    with torch.no_grad():
        expected = model(torch.cat([tokens.expand(2, 5), IDS], 1)).logits[:, 5:]
        values, _, _ = real_prefix(model, tokens)
        tuned = attach(model, "prefix")
        (weight,) = (p for p in tuned.parameters() if p.requires_grad)
        weight.copy_(values.view_as(weight))
        torch.testing.assert_close(tuned(IDS).logits, expected, atol=5e-6, rtol=0)
        tuned.save_pretrained(tmp_path)
        loaded = load_adapter(build(family), tmp_path)
        torch.testing.assert_close(loaded(IDS).logits, expected, atol=5e-6, rtol=0)


def test_an_encoder_decoder_has_no_prefix_here():
    config = BartConfig(
        vocab_size=61,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
    )
    with pytest.raises(InputError, match="peft prefix: does not fit BartForConditional"):
        attach(BartForConditionalGeneration(config).eval(), "prefix")


@pytest.mark.parametrize("name", ["prompt", "p-tuning"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read(name, family):
    tuned = attach(build(family), name)
    with torch.no_grad():
        before = tuned(input_ids=IDS, labels=IDS).loss
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter))
        assert tuned(input_ids=IDS, labels=IDS).loss != before


def test_a_prompt_has_the_width_of_the_embeddings():
    """OPT-350m's are narrower than its hidden states."""
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    model = OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=16)).eval()
    tuned = attach(model, "prompt")
    assert [tuple(p.shape) for p in tuned.parameters() if p.requires_grad] == [(5, 16)]


class Deaf(PhiForCausalLM):
    """Keeps keys and values, and attends to none that it is handed."""

    def forward(self, input_ids=None, past_key_values=None, attention_mask=None, **more):
        return super().forward(input_ids=input_ids, **more)


def test_a_prefix_that_is_not_read_is_refused():
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    with pytest.raises(InputError, match="Deaf: its forward pass does not read it"):
        attach(Deaf(PhiConfig(**sizes)).eval(), "prefix")


def test_the_command_refuses_before_it_makes_a_folder(zopeft_command, tmp_path, tiny_data):
    model = build("lfm2")
    model.resize_token_embeddings(600)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = ["tune", str(tmp_path / "model"), "--prefix", "--task", "sst2"]
    line = zopeft_command.refused(*words, "--data", tiny_data, "--out", out)
    assert "peft prefix: does not fit Lfm2ForCausalLM: layer 0 keeps no keys" in line
    assert not out.exists()


def test_a_prompt_of_several_tasks_is_loaded_and_tuned(tmp_path):
    config = MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2
    )
    made = get_peft_model(build("phi3"), config).eval()
    tasks = torch.tensor([1, 2])
    with torch.no_grad():
        expected = made(input_ids=IDS, task_ids=tasks).logits
    made.save_pretrained(tmp_path)
    tuned = load_adapter(build("phi3"), tmp_path)
    with torch.no_grad():
        assert torch.equal(tuned(input_ids=IDS, task_ids=tasks).logits, expected)
    blocks = zopeft.discover(tuned)
    assert len(blocks) == 3
    before = [block.data.clone() for block in blocks]
    method = zopeft.MeZO(blocks, lr=1e-2)
    method.step(lambda: tuned(input_ids=IDS, labels=IDS, task_ids=tasks).loss)
    assert all(not torch.equal(b.data, old) for b, old in zip(blocks, before, strict=True))
