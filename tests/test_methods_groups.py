"""Groups of a batch that each see their own direction: in one forward what they see apart."""

from __future__ import annotations

import pytest
import torch
from test_probes_stacked import adapted, bits, dressed, forwards, same_bits
from tiny_families import CONFIGS, build
from transformers import AutoModelForCausalLM, AutoTokenizer

import zopeft
from zopeft.blocks import keep_trainable
from zopeft.embedded import MODEL_DIR
from zopeft.engine import Direction, flip_path, layer_forward
from zopeft.engine.flips import Flips, Signs, flips_of
from zopeft.errors import InputError
from zopeft.methods import METHODS
from zopeft.noise import role_seed
from zopeft.tasks import Collator, TaskDataset, load_rows, load_task, task_loss

APART = {"gpt2", "opt"}
"""Positions are looked up once for all rows, so no group has its own."""
IDS = (torch.arange(5 * 8).view(5, 8) * 7 + 5) % 61


def padded():
    mask = torch.ones_like(IDS)
    mask[1, 5:], mask[3, 4:] = 0, 0
    return {"input_ids": IDS, "attention_mask": mask, "labels": IDS.masked_fill(mask == 0, -100)}


def grzo(model, groups, probes="auto", **options):
    blocks = zopeft.discover(model)
    options = {"lr": 1e-3, "eps": 0.02, "seed": 5, "carrier": "modules", **options}
    return METHODS["grzo"](blocks, groups=groups, probes=probes, **options)


def estimated(model, batch, groups, probes, loss=None, **options):
    method = grzo(model, groups, probes, **options)
    with torch.no_grad():
        method.estimate(zopeft.BatchLoss(model, batch, loss))
    return torch.tensor(method._pending._sums), method


def choices():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    task = load_task("copa")
    rows = load_rows(task, "train", embedded=True)[:5]
    data = TaskDataset(task, rows, tokenizer, 64, loss="choice")
    model = zopeft.models.load_model(zopeft.models.resolve(None))[0]
    return model.eval(), Collator(tokenizer)([data[n] for n in range(5)])


@pytest.mark.parametrize("loss", [None, task_loss], ids=["model", "task"])
@pytest.mark.parametrize("groups", [2, 3, 7])
def test_the_groups_have_the_mean_of_the_batch(groups, loss):
    model = build("llama")
    closure = zopeft.BatchLoss(model, padded(), loss)
    with torch.no_grad():
        apart = torch.stack([closure.grouped(groups, only) for only in range(groups)])
        torch.testing.assert_close(apart.mean(), closure(), rtol=1e-6, atol=0)
    assert apart.unique().numel() == min(groups, 5) + (groups > 5)
    assert (apart[5:] == 0).all()


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "lora"])
def test_the_groups_of_a_batch_behind_virtual_tokens_have_its_mean_too(adapter):
    """The last virtual token of a prompt predicts the first real one, which counts then."""
    closure = zopeft.BatchLoss(adapted(adapter=adapter).eval(), padded())
    with torch.no_grad():
        apart = torch.stack([closure.grouped(3, only) for only in range(3)])
        together = closure.grouped(3, None)
        torch.testing.assert_close(apart.mean(), closure(), rtol=1e-6, atol=0)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=0)


def test_the_groups_of_a_choice_are_examples_with_all_their_rows():
    model, batch = choices()
    closure = zopeft.BatchLoss(model, batch, task_loss)
    assert len(batch["input_ids"]) == 10
    with torch.no_grad():
        apart = torch.stack([closure.grouped(3, only) for only in range(3)])
        torch.testing.assert_close(apart.mean(), closure(), rtol=1e-5, atol=0)
    together, method = estimated(model, batch, 3, "auto", task_loss)
    one_by_one, _ = estimated(model, batch, 3, "separate", task_loss)
    assert method.probing.groups_together
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("family", "groups", "noise", "few"),
    [(family, 2, "gaussian", 999) for family in CONFIGS]
    + [(family, 2, "gaussian", 1) for family in ("llama", "qwen2")]
    + [("llama", 5, "gaussian", 999), ("qwen2", 3, "low_rank", 1), ("gpt2", 5, "low_rank", 999)]
    + [("llama", 5, "binomial", 1)],
)
def test_one_forward_gives_what_each_group_gets_by_itself(family, groups, noise, few, monkeypatch):
    """By a product with u, and where a group has many rows by weights of its own."""
    ways = []
    for way in ("own_flips", "add_flips"):
        real = getattr(layer_forward, way)

        def noted(*given, way=way, real=real):
            found = real(*given)
            ways.append(way if found is not None else "")
            return found

        monkeypatch.setattr(layer_forward, way, noted)
    monkeypatch.setattr(flip_path, "FEW", few)
    model, batch = build(family), padded()
    apart, _ = estimated(model, batch, groups, "separate", noise=noise)
    before, dress = bits(model), dressed(model)
    rows = forwards(model)
    together, method = estimated(model, batch, groups, "auto", noise=noise)
    assert method.forward_passes == 2
    own = few == 1 and noise != "low_rank"
    assert ("own_flips" in ways) == (own and family not in APART)
    assert own or family in APART or "add_flips" in ways
    each = groups * -(-5 // groups)
    assert rows[: 1 if family in APART else None] == [each] * (1 if family in APART else 2)
    assert len(set(apart.tolist())) == 2 * groups
    torch.testing.assert_close(together, apart, rtol=2e-6, atol=0)
    model._forward_pre_hooks.clear()
    assert same_bits(model, before) and dressed(model) == dress


@pytest.mark.parametrize("adapter", ["lora", "prefix", "prompt"])
def test_adapters_have_a_copy_a_group(adapter):
    model = adapted("llama", adapter)
    options = {"carrier": "auto", "eps": 0.1}
    apart, _ = estimated(model, padded(), 3, "separate", **options)
    rows = forwards(model)
    together, _ = estimated(model, padded(), 3, "auto", **options)
    assert rows == [6, 6] and len(set(apart.tolist())) == 6
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=0)


@pytest.mark.parametrize("chosen", [r"bias$", r"k_proj|embed", r"norm"])
def test_biases_norms_and_tied_weights_have_signs_too(chosen):
    config = CONFIGS["qwen2"]()
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    keep_trainable(model, chosen)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            parameter.data.normal_()
    apart, _ = estimated(model, padded(), 3, "separate", eps=0.05)
    together, method = estimated(model, padded(), 3, "auto", eps=0.05)
    tied = any(len(block.owners) > 1 for block in method.blocks)
    assert method.probing.groups_together and tied == ("embed" in chosen)
    torch.testing.assert_close(together, apart, rtol=2e-6, atol=0)
    assert together.unique().numel() == 6


def test_sixteen_bits_are_near():
    model = build("llama").to(torch.bfloat16)
    apart, _ = estimated(model, padded(), 5, "separate", eps=0.1)
    together, _ = estimated(model, padded(), 5, "auto", eps=0.1)
    torch.testing.assert_close(together, apart, rtol=0.02, atol=0)
    assert together.unique().numel() == 10


def test_the_step_goes_along_what_each_group_has_seen():
    """From the two losses of each group and the directions one by one."""
    model, batch = build("llama"), padded()
    method = grzo(model, 3, divide="nothing")
    start = [p.detach().clone() for p in model.parameters()]
    method.step(zopeft.BatchLoss(model, batch))
    losses = method.last_record.all_losses()
    slopes = [(a - b) / 0.04 for a, b in zip(losses[:3], losses[3:], strict=True)]
    base = Direction(method.last_record.seed)
    signs = Signs(method.blocks, role_seed(method.last_record.seed, "signs"), 3)
    for index, before in enumerate(start):
        (part,) = method.engine.elements.parts(index, before)
        terms = [g * Flips.one(base, signs, n).values(part) for n, g in enumerate(slopes)]
        expected = before - 1e-3 / 3 * sum(terms).view(before.shape)
        torch.testing.assert_close(method.blocks[index].data, expected, rtol=1e-5, atol=1e-7)


def test_patterns_are_signs_and_not_of_each_other():
    blocks = zopeft.discover(build("llama"))
    cpu = torch.device("cpu")
    index = next(n for n, b in enumerate(blocks) if tuple(b.shape) == (61, 32))
    made = Signs(blocks, 7, 40)
    rows, columns = made.of(index, cpu)
    assert (rows.shape, columns.shape) == ((40, 61), (40, 32))
    assert (rows[0] == 1).all() and (columns[0] == 1).all()
    assert rows.abs().unique().tolist() == columns.abs().unique().tolist() == [1.0]
    assert len(rows.unique(dim=0)) == len(columns.unique(dim=0)) == 40
    assert abs(float(rows[1:].mean())) < 0.07 and abs(float(columns[1:].mean())) < 0.1
    for other in (Signs(blocks, 8, 40).of(index, cpu), made.of(index + 1, cpu)):
        assert not torch.equal(other[1][1:, :32], columns[1:])
    # A pattern does not depend on how many there are.
    assert torch.equal(Signs(blocks, 7, 3).of(index, cpu)[0], rows[:3])


def test_vectors_that_differ_in_more_than_signs_do_not_share():
    blocks = zopeft.discover(build("llama"))
    u, v, signs = Direction(1), Direction(2), Signs(blocks, 3, 2)
    flips = [Flips.one(u, signs, k) for k in range(2)]
    assert flips_of([(f, 0.1) for f in flips]) == flips
    assert flips_of([(flips[0], 0.1), (flips[1], -0.1)]) is None
    assert flips_of([(flips[0], 0.1), (Flips.one(v, signs, 1), 0.1)]) is None
    assert flips_of([(flips[0], 0.1), (Flips.one(u, Signs(blocks, 3, 2), 1), 0.1)]) is None
    assert flips_of([(flips[0], 0.1), (u, 0.1)]) is None and flips_of([]) is None


def test_closures_without_losses_of_examples_are_refused():
    model = build("llama")
    method = grzo(model, 2)
    with pytest.raises(InputError, match=r"closure: gives no losses of single examples.*BatchLoss"):
        method.step(lambda: model(**padded()).loss)
    with pytest.raises(InputError, match="loss function: gives no losses of single examples"):
        grzo(model, 2).step(zopeft.BatchLoss(model, padded(), lambda m, b: m(**b).loss))
