"""LoRA's A started from activations: what its layers' inputs span; the model says the same."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import CONFIGS, build, logits_of

import zopeft
from zopeft.errors import InputError
from zopeft.models import attach
from zopeft.models.activations import lora_layers, start_from_activations

RANK = 3
IDS = (torch.arange(4 * 8).view(4, 8) * 7 + 5) % 61


def batch():
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    return {"input_ids": IDS, "attention_mask": mask}


def inputs_of(model, layer, given):
    """What a layer of the base is given, of real places alone, [n, I]."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**given)
    hook.remove()
    return torch.cat([hidden[given["attention_mask"].bool()] for hidden in seen])


def explained(tokens, rows):
    basis = torch.linalg.qr(rows.t())[0]
    return float((tokens @ basis).square().sum() / tokens.square().sum())


@pytest.mark.parametrize("family", CONFIGS)
def test_a_has_the_leading_directions_of_its_inputs(family):
    model = build(family)
    plain = attach(model, "lora", {"r": RANK}, seed=1)
    random = {name: a.weight.clone() for name, (_, a, _) in lora_layers(plain).items()}
    before = logits_of(plain)
    assert start_from_activations(plain, [batch()] * 4, seed=2) == len(random) > 0
    assert torch.equal(logits_of(plain), before)
    for name, (base, a, b) in lora_layers(plain).items():
        tokens = inputs_of(plain, base, batch())
        values = torch.linalg.svdvals(tokens)
        most = float(values[:RANK].square().sum() / values.square().sum())
        assert explained(tokens, a.weight) > 0.93 * most > explained(tokens, random[name])
        assert not b.weight.any()
        gram = a.weight @ a.weight.t()
        torch.testing.assert_close(gram, torch.eye(RANK) / 3.0, rtol=0, atol=1e-5)


def test_its_rows_are_as_long_as_those_of_the_random_start():
    model = attach(build("llama"), "lora", {"r": 8}, seed=1)
    lengths = torch.cat([a.weight.norm(dim=1) for _, a, _ in lora_layers(model).values()])
    assert float(lengths.square().mean()) == pytest.approx(1.0 / 3.0, rel=0.1)


@pytest.mark.parametrize("train", ["AB", "B"])
def test_an_option_starts_it_from_random_tokens(train):
    options = {"r": RANK, "start": "activations", "train": train}
    one, two = (attach(build("llama"), "lora", options, seed=s).state_dict() for s in (1, 1))
    other = attach(build("llama"), "lora", options, seed=2)
    plain = attach(build("llama"), "lora", {"r": RANK, "train": train}, seed=1).state_dict()
    names = [name for name in one if "lora_A" in name]
    assert names and all(torch.equal(one[name], two[name]) for name in one)
    for name in names:
        assert not torch.equal(one[name], plain[name])
        assert not torch.equal(one[name], other.state_dict()[name])
    blocks = zopeft.discover(other)
    assert {block.role for block in blocks} == (
        {"lora_B"} if train == "B" else {"lora_A", "lora_B"}
    )


def test_padding_is_left_out():
    ends = []
    for pad in (0, 17):
        model = attach(build("llama"), "lora", {"r": RANK}, seed=1)
        given = batch()
        given["input_ids"] = IDS.masked_fill(given["attention_mask"] == 0, pad)
        start_from_activations(model, [given])
        ends.append([a.weight.clone() for _, a, _ in lora_layers(model).values()])
    for one, two in zip(*ends, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_what_is_wrong_is_told_in_a_line():
    with pytest.raises(
        InputError, match="peft lora: start must be random, activations or finetuner, got 'x'"
    ):
        attach(build("llama"), "lora", {"start": "x"})
    with pytest.raises(InputError, match="start: the model has no LoRA layer"):
        start_from_activations(build("llama"))
    model = attach(build("llama"), "lora")
    zopeft.MeZO(zopeft.discover(model), lr=1e-2).step(lambda: model(input_ids=IDS).logits.sum())
    with pytest.raises(InputError, match="has a B that is not 0"):
        start_from_activations(model)


def test_a_run_starts_from_its_own_rows(tmp_path, zopeft_command):
    words = ["--task", "copa", "--lora", "--steps", "2", "--batch-size", "2", "--lr", "1e-3"]
    words += ["peft.options.train=B", "task.train_examples=8", "task.eval_examples=4"]
    starts = []
    for start in ("activations", "random"):
        out = tmp_path / start
        given = [*words, f"peft.options.start={start}"]
        told = zopeft_command.json("tune", *given, "--out", str(out))
        assert told["steps"] == 2
        starts.append(load_file(out / "adapter_model.safetensors"))
    names = [name for name in starts[0] if "lora_A" in name]
    for name in names:
        gram = starts[0][name] @ starts[0][name].t()
        torch.testing.assert_close(gram, torch.eye(len(gram)) / 3.0, rtol=0, atol=1e-4)
        assert not torch.allclose(starts[0][name], starts[1][name])
    assert len(names) == 8
