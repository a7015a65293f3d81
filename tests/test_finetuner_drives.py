"""A fine-tuner learned on full weights at work: on adapters, derivatives, quantised bases."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.finetuner import FineTuner
from zopeft.models import attach, load_model, resolve

IDS = (torch.arange(2 * 9).view(2, 9) * 5 + 3) % 97


def llama(seed=0, layers=3, hidden=64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The base, a derivative of other weights, and a deeper and wider model of the family."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("family")
    tokenizer = AutoTokenizer.from_pretrained(resolve(None).path)
    for name, model in (
        ("base", llama()),
        ("base-instruct", llama(seed=1)),
        ("base-large", llama(layers=5, hidden=96)),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def finetuner(folders):
    """Learned scales of 1, 2, 3, ... in the order of the base's blocks."""
    blocks = zopeft.discover(AutoModelForCausalLM.from_pretrained(folders / "base"))
    made = FineTuner.initial(blocks, normalise=False)
    made.set_scales(made.match(blocks), torch.arange(1.0, len(blocks) + 1))
    return made


def load(folder, **options):
    return load_model(str(folder), **options)[0]


CASES = {
    "lora": lambda at: zopeft.discover(attach(load(at / "base"), "lora")),
    "prefix": lambda at: zopeft.discover(attach(load(at / "base"), "prefix")),
    "derivative": lambda at: zopeft.discover(load(at / "base-instruct")),
    "derivative, lora": lambda at: zopeft.discover(attach(load(at / "base-instruct"), "lora")),
    "8 bit, lora": lambda at: zopeft.discover(attach(load(at / "base", load_in_8bit=True), "lora")),
    "nf4, lora": lambda at: zopeft.discover(attach(load(at / "base", load_in_4bit=True), "lora")),
    "8 bit, prefix": lambda at: zopeft.discover(
        attach(load(at / "base", load_in_8bit=True), "prefix")
    ),
    "8 bit, scales": lambda at: zopeft.discover(load(at / "base", load_in_8bit=True), "scales"),
    "nf4, scales": lambda at: zopeft.discover(load(at / "base", load_in_4bit=True), "scales"),
    "another size": lambda at: zopeft.discover(load(at / "base-large")),
    "another size, lora": lambda at: zopeft.discover(attach(load(at / "base-large"), "lora")),
}


@pytest.mark.parametrize("case", CASES)
def test_every_block_is_driven_by_its_group(case, folders, finetuner):
    if "8 bit" in case or "nf4" in case:
        pytest.importorskip("bitsandbytes")
    blocks = CASES[case](folders)
    match = finetuner.match(blocks)
    assert match.count == len(blocks) > 0
    assert match.report.startswith(f"{len(blocks)} of {len(blocks)} blocks matched")
    if "another" not in case:
        assert [row["group"] for row in match.rows()] == [block.key for block in blocks]
    else:
        assert {"depth"} <= set(match.how) <= {"name", "depth"}
    order = {group.key: 1.0 + g for g, group in enumerate(finetuner.config.groups)}
    expected = torch.tensor([order[row["group"]] for row in match.rows()])
    method = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-4, seed=5)
    before = [block.data.clone() for block in blocks]
    for _ in range(2):
        loss = method.step(lambda: blocks.model(input_ids=IDS, labels=IDS).loss)
    assert bool(loss.isfinite())
    record = method.last_record
    torch.testing.assert_close(torch.from_numpy(record.scales), expected, rtol=1e-4, atol=0)
    moved = [not torch.equal(block.data, old) for block, old in zip(blocks, before, strict=True)]
    assert all(moved)
