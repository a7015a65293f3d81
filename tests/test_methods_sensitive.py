"""The few weights that matter most: their places learned, kept in a file, and trained alone."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from test_methods import Quadratic, equal, weights
from test_probes_stacked_full import build
from training_run import tiny_model, trainer
from transformers import AutoTokenizer

import zopeft
from zopeft.embedded import MODEL_DIR
from zopeft.engine import Direction
from zopeft.engine.picked import Picked
from zopeft.errors import InputError
from zopeft.finetuner.mask import FILE
from zopeft.journal.codec import decode, encode
from zopeft.journal.header import header_of
from zopeft.methods import METHODS
from zopeft.models import load_model, resolve
from zopeft.recipe.load import load_recipe
from zopeft.tasks import load_rows, load_task

IDS = (torch.arange(4 * 8).view(4, 8) * 7 + 5) % 61
BATCH = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}


def mask_of(model, share=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = zopeft.discover(model)
    scores = {b.name: torch.rand(b.shape, generator=generator) for b in blocks}
    return zopeft.Mask.largest(scores, share)


def make(model, mask=None, **options):
    mask = mask_of(model) if mask is None else mask
    options = {"lr": 1e-2, "eps": 1e-2, "seed": 1, **options}
    return METHODS["sensitive"](zopeft.discover(model), mask, **options)


def test_the_largest_of_all_blocks_together_are_picked():
    scores = {"a": torch.tensor([[1.0, 5.0], [3.0, 0.0]]), "b": torch.tensor([4.0, 3.0, 3.0])}
    for count, expected in (
        (1, {"a": [1]}),
        (2, {"a": [1], "b": [0]}),
        (3, {"a": [1, 2], "b": [0]}),
        (4, {"a": [1, 2], "b": [0, 1]}),
        (7, {"a": [0, 1, 2, 3], "b": [0, 1, 2]}),
    ):
        mask = zopeft.Mask.largest(scores, count / 7)
        assert {name: own.tolist() for name, own in mask.places.items()} == expected
        assert mask.count == count
    assert zopeft.Mask.largest(scores, 1e-6).count == 1


def test_it_is_learned_from_squared_gradients_and_the_weights_stay():
    model = build("llama")
    before = weights(model)
    halves = [{name: tensor[k::2] for name, tensor in BATCH.items()} for k in range(2)]
    mask = zopeft.sensitive_mask(model, halves, share=0.01)
    assert equal(weights(model), before) and all(p.grad is None for p in model.parameters())
    total = {}
    for half in halves:
        model(**half).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad.square()
            parameter.grad = None
    expected = zopeft.Mask.largest(total, 0.01)
    assert mask.digest() == expected.digest() and mask.count == expected.count > 100
    one = zopeft.sensitive_mask(model, halves[:1], share=0.01)
    assert one.digest() != mask.digest() and mask.facts["batches"] == "2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carrier", ["flat", "modules"])
def test_its_weights_alone_move_and_as_they_were_probed(carrier, dtype):
    model, twin = build("llama").to(dtype), build("llama").to(dtype)
    mask, start = mask_of(model), weights(model)
    method = make(model, mask, carrier=carrier, directions=2)
    replayed, record = make(twin, mask, carrier=carrier, directions=2), None
    for _ in range(3):
        method.step(zopeft.BatchLoss(model, BATCH))
        record = decode(encode(method.last_record, record), record)
        replayed.replay(record)
        assert equal(weights(model), weights(twin))
    moved = 0
    for block, old in zip(method.blocks, start, strict=True):
        changed = (block.data != old).flatten().nonzero().flatten().tolist()
        assert set(changed) <= set(mask.places.get(block.name, torch.empty(0)).tolist())
        moved += len(changed)
    # Where a step is below a 16-bit weight's grain it is rounded, so not all have moved.
    assert moved > (0.99 if dtype == torch.float32 else 0.3) * mask.count


def test_a_full_mask_is_mezo():
    ends = []
    for name in ("mezo", "sensitive"):
        model = Quadratic()
        blocks, start = zopeft.discover(model), weights(model)
        own = {"mask": mask_of(model, 1.0)} if name == "sensitive" else {}
        method = METHODS[name](blocks, lr=1e-2, eps=1e-2, seed=3, carrier="modules", **own)
        for _ in range(3):
            method.step(model.loss)
        assert not equal(weights(model), start)
        ends.append(weights(model))
    for one, other in zip(*ends, strict=True):
        # A sum of one term is worked on in pieces, a direction by its own kernel.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher", "low_rank"])
def test_its_numbers_are_those_of_the_whole_direction(noise):
    model = build("llama")
    method = make(model, mask_of(model), noise=noise, carrier="modules")
    whole, elements = Direction(7), method.engine.elements
    picked = Picked(whole, method.places)
    for index, block in enumerate(method.blocks):
        expected = torch.zeros(block.numel)
        (part,) = elements.parts(index, block.data)
        if not picked.touches(index):
            continue
        own = method.places[index]
        expected[own] = whole.values(part).flatten()[own]
        assert torch.equal(picked.values(part).flatten(), expected) and expected.any()
        if block.kind == "embedding":
            rows = torch.tensor([9, 2, 40])
            ((some, _),) = elements.some(index, block.data, rows)
            assert torch.equal(picked.values(some), expected.view(block.shape)[rows])


def test_a_file_and_a_header_tell_the_mask(tmp_path):
    model = build("llama")
    mask = mask_of(model)
    path = mask.save(tmp_path / "m.safetensors")
    assert mask.save(tmp_path).name == FILE
    loaded = zopeft.Mask.load(path)
    assert loaded.digest() == mask.digest() == zopeft.Mask.load(tmp_path).digest()
    told = [header_of(make(model, each)) for each in (mask, str(path), tmp_path)]
    assert {json.loads(h.to_bytes())["options"]["mask"] for h in told} == {mask.digest()}
    told[0].check(told[1], "j.bin")
    with pytest.raises(InputError, match=r"mask '.*' instead of"):
        told[0].check(header_of(make(model, mask_of(model, seed=1))), "j.bin")


def test_a_rate_is_measured_along_the_mask():
    model = Quadratic()
    mask = mask_of(model, 0.2)
    seen = []

    def closure():
        seen.append([(p != q).sum().item() for p, q in zip(model.parameters(), start, strict=True)])
        return model.loss()

    method = make(model, mask, lr="auto")
    start = weights(model)
    method.calibrate(closure)
    assert max(map(sum, seen)) <= mask.count < sum(p.numel() for p in start)
    first = model.loss().item()
    for _ in range(30):
        method.step(model.loss)
    assert model.loss().item() < first


def test_a_fine_tuner_carries_it(tmp_path):
    model = load_model(resolve(None))[0]
    before, tokenizer = weights(model), AutoTokenizer.from_pretrained(MODEL_DIR)
    rows = {"copa": load_rows(load_task("copa"), "train", embedded=True)[:8]}
    options = {"steps": 4, "batch_size": 2, "capacity": "scales", "mask": 1e-3}
    finetuner = zopeft.meta_train(model, ["copa"], tokenizer, rows, **options)
    assert finetuner.mask.count == round(1e-3 * sum(p.numel() for p in before))
    assert equal(weights(model), before) and "weights of" in finetuner.config.training["mask"]
    finetuner.save_pretrained(tmp_path / "f")
    again = zopeft.FineTuner.from_pretrained(tmp_path / "f")
    assert again.mask.digest() == finetuner.mask.digest() == again.copy().mask.digest()
    assert again.untrained(0).mask is None
    again.mask = None
    again.save_pretrained(tmp_path / "f", overwrite=True)
    assert zopeft.FineTuner.from_pretrained(tmp_path / "f").mask is None


def test_a_trainer_takes_a_file_and_goes_on(tmp_path):
    path = str(mask_of(tiny_model()).save(tmp_path / "m.safetensors"))
    options = {"method": "sensitive", "method_options": {"mask": path}}
    whole = trainer(tiny_model(), tmp_path / "whole", max_steps=4, **options)
    whole.train()
    trainer(tiny_model(), tmp_path / "part", max_steps=2, **options).train()
    again = trainer(tiny_model(), tmp_path / "part", max_steps=4, **options)
    again.train(resume_from_checkpoint=True)
    assert equal(weights(again.model), weights(whole.model))
    assert not equal(weights(whole.model), weights(tiny_model()))


def test_what_is_wrong_is_told_in_a_line(tmp_path):
    model = Quadratic()
    blocks = zopeft.discover(model)
    kind = METHODS["sensitive"]
    other = zopeft.Mask({"elsewhere": torch.tensor([1])})
    far = zopeft.Mask({blocks[0].name: torch.tensor([10**6])})
    falling = tmp_path / "falling.safetensors"
    save_file({"a": torch.tensor([3, 1])}, falling, metadata={"zopeft": "zopeft_mask 1"})
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.tensor([3, 1])}, foreign)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    for mask, told in (
        ("", r"Sensitive mask: needs a mask; give a file"),
        (3, "takes a mask, got 'int'"),
        (str(tmp_path / "none"), "mask: no such file"),
        (falling, "the places of a are not ascending"),
        (foreign, "mask: is no mask"),
        (broken, "damaged or not safetensors"),
        (other, "mask: names none of the blocks, got 'elsewhere'"),
        (far, "has places beyond the 30 weights"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            kind(blocks, mask, lr=1e-3)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="sensitive_mask batches: there is no batch"):
        zopeft.sensitive_mask(build("llama"), [])
    with pytest.raises(InputError, match="share: must be above 0"):
        zopeft.sensitive_mask(build("llama"), [BATCH], share=0.0)


def test_a_recipe_without_one_is_refused_before_the_model_is_loaded():
    words = ["method.name=sensitive", "method.lr=0.001"]
    with pytest.raises(InputError, match=r"--method: sensitive needs mask; give method\.mask="):
        load_recipe("tune", overrides=words)
    recipe = load_recipe("tune", overrides=[*words, "method.mask=m.safetensors"])
    assert recipe.method.options == {"mask": "m.safetensors"}
