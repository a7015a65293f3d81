"""What libraries warn of and bears on results is told in one line; the rest is not."""

import json
import logging
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_targets import IDS, SIZES
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.cli.output import Output
from zopeft.errors import InputError, ZopeftWarning, warn
from zopeft.models import attach, load_adapter, load_model
from zopeft.models.quiet import quiet


def build(tied=True):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval()


def told(recwarn):
    lines = [str(w.message) for w in recwarn if issubclass(w.category, ZopeftWarning)]
    recwarn.clear()
    assert not any("\n" in line for line in lines)
    return lines


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_a_merge_into_a_tied_weight_is_told(layer, recwarn, tmp_path):
    options = {"targets": ["q_proj", layer]}
    tuned = attach(build(), "lora", options)
    (line,) = told(recwarn)
    assert line.startswith("peft lora: the weight of ") and layer in line and "is tied" in line
    with torch.no_grad():
        for parameter in (p for p in tuned.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = tuned(IDS).logits
        tuned.save_pretrained(tmp_path)
        loaded = load_adapter(build(), tmp_path)
        lines = [line for line in told(recwarn) if line.startswith("--adapter: ")]
        assert len(lines) == 1 and "is tied" in lines[0]
        # What the line says is so: exact as an adapter, another model when merged.
        torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-6, rtol=0)
        assert (loaded.merge_and_unload()(IDS).logits - expected).abs().max() > 1e-2


def test_no_word_where_a_merge_is_exact(recwarn):
    attach(build(tied=False), "lora", {"targets": ["q_proj", "lm_head"]})
    attach(build(), "lora")
    saved = attach(build(), "lora", {"modules_to_save": ["lm_head"]})
    assert told(recwarn) == []
    with torch.no_grad():
        for parameter in (p for p in saved.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = saved(IDS).logits
        torch.testing.assert_close(
            saved.merge_and_unload()(IDS).logits, expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("json", [False, True])
def test_a_command_shows_each_line_once_among_its_notes(json, capsys):
    with Output(json=json):
        for _ in range(2):
            attach(build(), "lora", {"targets": ["lm_head"]})
        warnings.warn("not zopeft's", stacklevel=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("note: peft lora: the weight of lm_head is tied") == 1
    assert err.count("\n") == 1


def test_settings_of_a_newer_peft_are_told(recwarn, tmp_path):
    attach(build(tied=False), "lora").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_new_thing": True}))
    told(recwarn)
    load_adapter(build(tied=False), tmp_path)
    (line,) = told(recwarn)
    assert line.startswith("peft: Unexpected keyword arguments ['use_new_thing']")


def test_tensors_that_are_left_out_are_told(recwarn, tiny_model, tmp_path):
    model, tokenizer = load_model(str(tiny_model))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert told(recwarn) == []
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.gate.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(str(tmp_path))
    (line,) = told(recwarn)
    assert "1 of the tensors in its weight files have no place in LlamaForCausalLM" in line
    assert "self_attn.gate.weight" in line


def test_weights_that_are_not_tied_after_all_are_told(recwarn, tiny_model, tmp_path):
    model, tokenizer = load_model(str(tiny_model))
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    told(recwarn)
    load_model(str(tmp_path))
    lines = told(recwarn)
    assert len(lines) == 1
    assert lines[0].startswith("transformers: ") and "we will NOT tie them" in lines[0]


def test_quiet_puts_all_back_and_passes_its_own():
    logger = logging.getLogger("transformers")
    before = logger.handlers, logger.level, logger.propagate, warnings.showwarning

    def noisy():
        with quiet(relay=True):
            warnings.warn("theirs", stacklevel=1)
            warn("here", "told")
            warn("here", "told")

    with pytest.warns() as caught:
        noisy()
    assert [(w.category, str(w.message)) for w in caught] == [(ZopeftWarning, "here: told")]
    assert (logger.handlers, logger.level, logger.propagate, warnings.showwarning) == before


def test_plain_weights_from_a_packed_file_are_weights(tmp_path):
    """What transformers does with ``gguf_file=``: unpacks, and says packed ever after."""
    model = build()
    model.config.quantization_config = GgufConfig()
    model.hf_quantizer = object()
    model.is_quantized = True
    blocks = zopeft.discover(model)
    assert len(blocks) == len(list(model.parameters()))
    zopeft.MeZO(blocks, lr=1e-3).step(lambda: model(IDS, labels=IDS).loss)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("method", ["gguf", "gptq"])
def test_packed_weights_are_not(method):
    model = build()
    model.config.quantization_config = {"quant_method": method}
    if method == "gguf":
        layer = model.model.layers[0].self_attn
        packed = torch.zeros(32, 34, dtype=torch.uint8)
        layer.q_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(InputError, match="the weights are quantised"):
        zopeft.discover(model)
