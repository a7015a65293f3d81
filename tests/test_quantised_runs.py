"""Quantised bases through the command line: LoRA on top, and their scales; biases alone."""

from __future__ import annotations

import json

import pytest
import torch
from cli_runs import Runner
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import zopeft
from zopeft.models import load_adapter, load_model, resolve
from zopeft.training import ZOTrainer, ZOTrainingArguments

pytest.importorskip("bitsandbytes")

SCORE = ("--task", "sst2", "training.eval_batch_size=4", "task.eval_examples=4")
SHORT = (*SCORE, "--batch-size", 2, "task.train_examples=8", "--seed", 1)
KINDS = {
    "8bit": (("--load-in-8bit",), {"load_in_8bit": True}),
    "nf4": (("--load-in-4bit",), {"load_in_4bit": True}),
    "fp4": (
        ("--load-in-4bit", "model.quant_type=fp4"),
        {"load_in_4bit": True, "quant_type": "fp4"},
    ),
    "double": (
        ("--load-in-4bit", "model.double_quant=true"),
        {"load_in_4bit": True, "double_quant": True},
    ),
}
"""Words of the command line, and the same for `load_model`."""
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.fixture
def run(capsys):
    return Runner(capsys)


def rows():
    """Rows in SST-2's columns, so that a model that is not the embedded one has data."""
    words = ("fine", "dull", "warm", "cold", "rich", "flat", "bright", "stale")
    return [{"sentence": f"a {word} film", "label": 1 - i % 2} for i, word in enumerate(words)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with local data, and two small random models with the embedded tokenizer."""
    root = tmp_path_factory.mktemp("places")
    tokenizer = AutoTokenizer.from_pretrained(resolve(None).path)
    data = root / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows()))
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    llama = LlamaConfig(**sizes, intermediate_size=128, initializer_range=0.1)
    opt = OPTConfig(**sizes, ffn_dim=128, word_embed_proj_dim=64, init_std=0.1)
    for name, model in (("llama", LlamaForCausalLM(llama)), ("opt", OPTForCausalLM(opt))):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_lora_on_a_quantised_base(kind, run, places, tmp_path):
    out, (flags, options) = tmp_path / "out", KINDS[kind]
    base = places / "llama"
    words = ("tune", base, "--lora", *flags, *SHORT, "--data", places / "data", "--steps", 3)
    found = run.json(*words, "--out", out)
    assert found["steps"] == 3
    adapter = load_file(out / "adapter_model.safetensors")
    # B begins at zero.
    assert all(bool(w.any()) for name, w in adapter.items() if "lora_B" in name)
    score = run.json("eval", base, "--adapter", out, *flags, *SCORE, "--data", places / "data")
    assert score["metrics"]["loss"] == pytest.approx(found["metrics"]["after"]["loss"], abs=1e-4)
    one, _ = load_model(str(base), **options)
    layer = one.model.layers[0].mlp.up_proj
    if kind != "8bit":
        state = layer.weight.quant_state
        assert (state.quant_type, bool(state.nested)) == (
            "fp4" if kind == "fp4" else "nf4",
            kind == "double",
        )
    tuned = load_adapter(one, out)
    assert {p.dtype for p in zopeft.discover(tuned).parameters()} == {torch.float32}
    assert all(p.dtype != torch.float32 for n, p in tuned.named_parameters() if "base_layer" in n)


@pytest.mark.parametrize("kind", ["8bit", "nf4", "fp4"])
def test_scales_of_a_quantised_base(kind, run, places, tmp_path):
    out, (flags, options) = tmp_path / "out", KINDS[kind]
    words = ("tune", places / "llama", "--peft", "scales", *flags, *SHORT)
    words += ("--data", places / "data", "--lr", "1e-3", "method.clip=3.0")
    found = run.json(*words, "--steps", 3, "--out", out)
    assert (found["steps"], found["peft"], found["blocks"]) == (3, "scales", 14)
    loaded, _ = load_model(str(out))
    start, _ = load_model(str(places / "llama"), **options)
    after = {b.name: b.data for b in zopeft.discover(loaded, space="scales")}
    before = {b.name: b.data for b in zopeft.discover(start, space="scales")}
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in after)
    # The codes and all float tensors are the base's.
    kept = dict(start.named_parameters())
    assert all(torch.equal(p, kept[n]) for n, p in loaded.named_parameters())
    score = run.json("eval", out, *SCORE, "--data", places / "data")
    assert score["metrics"]["loss"] == pytest.approx(found["metrics"]["after"]["loss"], abs=1e-2)


@pytest.mark.parametrize("save_steps", [0, 2])
def test_scales_are_resumed_bit_for_bit(save_steps, places, tmp_path):
    def train(out, steps, resume=None):
        model, _ = load_model(str(places / "llama"), load_in_4bit=True)
        blocks = zopeft.discover(model, space="scales")
        args = ZOTrainingArguments(
            output_dir=str(out),
            method="mezo",
            learning_rate=1e-3,
            max_steps=steps,
            per_device_train_batch_size=2,
            save_strategy="steps" if save_steps else "no",
            save_steps=save_steps or 500,
            report_to=[],
            seed=4,
            use_cpu=True,
        )
        data = [{"input_ids": IDS[0] + i, "labels": IDS[0] + i} for i in range(6)]
        trainer = ZOTrainer(model, args, train_dataset=data, blocks=blocks)
        trainer.train(resume_from_checkpoint=resume)
        assert model.is_quantized
        return [block.data.clone() for block in blocks]

    whole = train(tmp_path / "whole", 5)
    train(tmp_path / "parts", 3)
    parts = train(tmp_path / "parts", 5, True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    start = zopeft.discover(load_model(str(places / "llama"), load_in_4bit=True)[0], space="scales")
    assert not any(torch.equal(a, block.data) for a, block in zip(whole, start, strict=True))


def test_biases_alone(run, places, tmp_path):
    out = tmp_path / "out"
    base = places / "opt"
    words = ("tune", base, "--peft", "bitfit", *SHORT, "--data", places / "data")
    found = run.json(*words, "--steps", 3, "--lr", "1e-3", "--out", out)
    assert found["peft"] == "bitfit"
    start = AutoModelForCausalLM.from_pretrained(base)
    tuned = AutoModelForCausalLM.from_pretrained(out)
    same = dict(start.named_parameters())
    moved = {n for n, p in tuned.named_parameters() if not torch.equal(p, same[n])}
    assert len(moved) == found["blocks"]
    assert all(name.endswith(".bias") for name in moved)
    assert not torch.equal(logits(tuned), logits(start))


def test_a_base_that_is_quantised_on_disk(run, places, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    model, tokenizer = load_model(str(places / "llama"), load_in_8bit=True)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    words = (base, *SHORT, "--data", places / "data")
    assert run.json("tune", *words, "--lora", "--steps", 3, "--out", out)["steps"] == 3
    assert type(load_model(str(base))[0].model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    found = run.json("tune", *words, "--peft", "scales", "--steps", 3, "--out", tmp_path / "s")
    assert found["blocks"] == 14
    needs = run.json("estimate", base)
    assert needs["bits"] == 8
    assert "zeroth-order, full" not in {need["name"] for need in needs["needs"]}
    line = run.refused("tune", *words, "--full")
    assert "the weights are quantised" in line and "use an adapter (--lora)" in line
    line = run.refused("tune", *words, "--lora", "--load-in-4bit")
    assert "the model is quantised already; leave --load-in-8bit" in line


def test_refusals(run, places):
    data = ("--data", places / "data", "--task", "sst2")
    llama = places / "llama"
    line = run.refused("tune", llama, "--peft", "bitfit", *data)
    assert "--peft bitfit: the model has no biases" in line
    line = run.refused("tune", llama, "--peft", "scales", *data)
    assert "no quantised layer" in line
    line = run.refused("tune", llama, "--full", "--load-in-8bit", *data)
    assert "quantised weights cannot be trained in full" in line
    line = run.refused(
        "tune", llama, "--peft", "scales", "--load-in-8bit", "--method", "fo_sgd", *data
    )
    assert "scales have no gradient" in line
    line = run.refused("tune", llama, "--peft", "scales", "peft.options.r=3", *data)
    assert "scales tuning takes none" in line
    line = run.refused("tune", llama, "--lora", "model.quant_type=fp4", *data)
    assert "model.quant_type, model.double_quant: they shape 4-bit weights" in line
    line = run.refused("tune", llama, "--lora", "--load-in-4bit", "model.quant_type=fp5", *data)
    assert "model.quant_type" in line and "nf4" in line
    double = ("--load-in-4bit", "model.double_quant=true")
    line = run.refused("tune", llama, "--peft", "scales", *double, *data)
    assert "model.double_quant: quantised scales cannot be tuned" in line
