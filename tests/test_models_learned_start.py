"""LoRA's A started from what a fine-tuner has learned of its base's inputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import build, logits_of

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.jobs.bench.entry import parse_entry
from zopeft.jobs.bench.making import make_method
from zopeft.models import attach, load_model
from zopeft.models.activations import lora_layers
from zopeft.models.learned_start import start_from_finetuner
from zopeft.recipe.schema import PeftSection, Recipe

FAMILIES = ("llama", "gpt2")


def learned_on(model, rank):
    """A fine-tuner with directions of every linear layer of a model, each its own."""
    blocks = zopeft.discover(model, "full")
    made = FineTuner.initial(blocks, hidden=4, seed=0)
    generator = torch.Generator().manual_seed(3)
    bases = {
        index: tuple(
            torch.linalg.qr(torch.randn(size, rank, generator=generator))[0] for size in block.shape
        )
        for index, block in enumerate(blocks)
        if block.kind in ("linear", "conv1d") and block.layer is not None
    }
    made.set_bases(made.match(blocks), bases)
    return made, {
        # Conv1D holds [I, O].
        blocks[index].name.removesuffix(".weight"): pair[blocks[index].kind != "conv1d"]
        for index, pair in bases.items()
    }


def given(family, rank, r, seed=1):
    finetuner, inputs = learned_on(build(family), rank)
    model = attach(build(family), "lora", {"r": r, "start": "finetuner"}, seed=seed)
    return model, finetuner, inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_has_the_learned_directions_and_the_model_says_the_same(family):
    model, finetuner, inputs = given(family, 4, 3)
    before = logits_of(model)
    random = {name: a.weight.clone() for name, (_, a, _) in lora_layers(model).items()}
    assert start_from_finetuner(zopeft.discover(model), finetuner) == len(random) > 0
    assert torch.equal(logits_of(model), before)
    for name, (_, a, b) in lora_layers(model).items():
        expected = inputs[name.removeprefix("base_model.model.")][:, :3].t() / 3**0.5
        torch.testing.assert_close(a.weight, expected, rtol=0, atol=6e-3)
        assert not b.weight.any() and not torch.allclose(a.weight, random[name], atol=0.1)


@pytest.mark.parametrize("train", ["AB", "B"])
def test_where_fewer_were_learned_random_ones_orthogonal_to_them_follow(train):
    finetuner, inputs = learned_on(build("llama"), 2)
    model = attach(build("llama"), "lora", {"r": 6, "train": train}, seed=1)
    blocks = zopeft.discover(model)
    ends = []
    for seed in (1, 1, 2):
        start_from_finetuner(blocks, finetuner, seed)
        ends.append({name: a.weight.clone() for name, (_, a, _) in lora_layers(model).items()})
    for name, weight in ends[0].items():
        gram = weight @ weight.t()
        torch.testing.assert_close(gram, torch.eye(6) / 3.0, rtol=0, atol=1e-3)
        learned = inputs[name.removeprefix("base_model.model.")].t() / 3**0.5
        torch.testing.assert_close(weight[:2], learned, rtol=0, atol=6e-3)
        assert torch.equal(weight, ends[1][name])
        assert torch.equal(weight[:2], ends[2][name][:2])
        assert not torch.allclose(weight[2:], ends[2][name][2:], atol=0.05)


def test_layers_that_it_knows_nothing_of_keep_their_start():
    model, finetuner, _ = given("llama", 4, 3)
    kept = sorted(finetuner.bases)[0]
    finetuner.bases.pop(kept)
    before = {name: a.weight.clone() for name, (_, a, _) in lora_layers(model).items()}
    started = start_from_finetuner(zopeft.discover(model), finetuner)
    alike = [torch.equal(a.weight, before[name]) for name, (_, a, _) in lora_layers(model).items()]
    assert started == len(before) - sum(alike) and sum(alike) == 1


def test_what_is_wrong_is_told_in_a_line(zopeft_command, tmp_path):
    model, finetuner, _ = given("llama", 4, 3)
    blocks = zopeft.discover(model)
    with pytest.raises(InputError, match="the fine-tuner has no directions of the inputs of any"):
        start_from_finetuner(blocks, finetuner.without_bases())
    with pytest.raises(InputError, match="start: the model has no LoRA layer, got 'finetuner'"):
        start_from_finetuner(zopeft.discover(build("llama"), "full"), finetuner)
    zopeft.MeZO(blocks, lr=1e-2).step(lambda: logits_of(model).sum())
    with pytest.raises(InputError, match="has a B that is not 0"):
        start_from_finetuner(blocks, finetuner)
    words = ["--task", "copa", "--lora", "--steps", "2", "peft.options.start=finetuner"]
    line = zopeft_command.refused("tune", *words, "--out", str(tmp_path / "x"))
    assert "start needs a fine-tuner, got 'finetuner'; give --finetuner" in line
    assert not (tmp_path / "x").exists()


def test_a_run_starts_so_and_a_bench_starts_those_that_have_one(zopeft_command, tmp_path):
    folder = tmp_path / "finetuner"
    words = ["--task", "cb", "--steps", "8", "--capacity", "subspace", "--out", str(folder)]
    zopeft_command.json("meta-train", *words)
    own = ["--task", "copa", "--lora", "--steps", "2", "--batch-size", "2", "--lr", "1e-3"]
    own += ["task.train_examples=8", "task.eval_examples=4", "--finetuner", str(folder)]
    own += ["peft.options.train=B"]
    starts = {}
    for start in ("finetuner", "random"):
        out = tmp_path / f"run-{start}"
        told = zopeft_command.json("tune", *own, f"peft.options.start={start}", "--out", str(out))
        assert told["steps"] == 2
        starts[start] = load_file(out / "adapter_model.safetensors")
    names = [name for name in starts["random"] if "lora_A" in name]
    for name in names:
        weight = starts["finetuner"][name]
        torch.testing.assert_close(
            weight @ weight.t(), torch.eye(len(weight)) / 3.0, rtol=0, atol=1e-3
        )
        assert not torch.allclose(weight, starts["random"][name])
    assert len(names) == 8
    model = attach(load_model(str(MODEL_DIR))[0], "lora", {"start": "finetuner"}, seed=1)
    body = SimpleNamespace(blocks=zopeft.discover(model), train=[{"input_ids": [1, 2, 3]}])
    recipe = Recipe(job="bench", peft=PeftSection(options={"start": "finetuner"}))
    seen = []
    for line in ("mezo", f"finetuner {folder}", f"finetuner {folder} shuffled"):
        make_method(parse_entry(line), body, 1e-3, recipe, 1)
        seen.append(torch.cat([a.weight.flatten() for _, a, _ in lora_layers(model).values()]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(seen[one], seen[other])
