"""Every PEFT type on tiny models of seven families is what docs/peft.md says, or refused."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from peft import PeftModel, PeftType
from peft_page import (
    FAMILIES,
    NO,
    OPTIONS,
    PAGE,
    ROWS,
    YES,
    adapted,
    build,
    logits_of,
    loss_of,
    outcome,
    page,
    peft_type,
    read_page,
    tune,
)

import zopeft
from zopeft.errors import InputError
from zopeft.models import PEFT, attach, load_adapter, load_model
from zopeft.models.peft_types import REFUSED
from zopeft.optim.defaults import LORA, PROMPT, defaults

PROMPTS = ("prefix", "cartridge", "prompt", "p-tuning")
CELLS, REASONS = read_page()
slow = pytest.mark.slow
sklearn = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is missing")
CASES = [
    pytest.param(row, family, marks=[] if family == "Llama" else slow)
    for family in FAMILIES
    for row in ROWS
    if row != "adamss"
]
CASES += [pytest.param("adamss", family, marks=[sklearn, slow]) for family in FAMILIES]


def test_every_type_of_peft_is_made_or_refused():
    told = {peft_type(name) for name in [*PEFT, *REFUSED]}
    assert told == set(PeftType)
    assert not set(PEFT) & set(REFUSED)
    assert len(CASES) == len(ROWS) * len(FAMILIES) >= 42 * 7


def test_the_page_is_up_to_date():
    assert set(CELLS) == {(row, family) for row in ROWS for family in FAMILIES}
    assert page(CELLS, REASONS) == PAGE.read_text(encoding="utf-8")
    refused = {row for row, _ in CELLS if NO in {CELLS[row, family] for family in FAMILIES}}
    assert refused == set(REASONS)
    assert sum(word == YES for word in CELLS.values()) > 200


@pytest.mark.parametrize(("row", "family"), CASES)
def test_tuned_saved_and_loaded(row, family):
    word, why = outcome(row, family)
    assert word == CELLS[row, family]
    assert (word == NO) == bool(why)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_made_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"peft type {name}.*; t") as caught:
        attach(build("Llama"), name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in PEFT if name != "adamss"])
def test_the_defaults_of_a_type_converge(name, tmp_path):
    """Without a measured rate: the loss falls by more than rounding in a few steps."""
    model = adapted(name, "Llama")
    found = defaults(zopeft.discover(model))
    if name in ("lora", "dora", "rslora"):
        assert found == LORA
    assert (found == PROMPT) == (name in PROMPTS)
    first, last = tune(model, found.lr, found.eps)
    assert last < first - 5e-5
    model.save_pretrained(tmp_path)
    loaded = load_adapter(build("Llama"), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in PEFT if name not in (*PROMPTS, "adamss")])
def test_a_new_adapter_leaves_the_model_as_it_was(name):
    """All but three: those begin with small random numbers, as a zero beside a zero would stay."""
    before, after = loss_of(build("Llama")), loss_of(adapted(name, "Llama"))
    least = 5e-3 if name in ("delora", "vblora", "unilora") else 1e-4
    assert abs(after - before) < least
    assert (least > 1e-4) == (abs(after - before) > 1e-6) or least == 1e-4


@pytest.mark.parametrize("family", ["Llama", "OPT", "GPT-2"])
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


@pytest.mark.parametrize("family", ["Llama", "OPT"])
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
    base = build("Llama")
    before = loss_of(base)
    model = attach(base, "adalora", {"rank": 4})
    config = model.peft_config["default"]
    assert (config.init_r, config.target_r) == (4, 4)
    assert loss_of(model) == before
    with pytest.raises(InputError, match="peft adalora: the rank stays fixed") as caught:
        attach(build("Llama"), "adalora", {"init_r": 8, "target_r": 4})
    assert "\n" not in str(caught.value)


def test_sizes_of_blocks_are_fitted_to_the_layers_that_the_user_names():
    model = attach(build("Llama"), "c3a", {"targets": ["gate_proj", "q_proj"]})
    config = model.peft_config["default"]
    assert config.block_size == 16
    layers = r"model\.layers\.0\.mlp\.(gate|up)_proj"
    found = attach(build("Llama"), "road", {"targets": layers}).peft_config["default"]
    assert found.group_size == 48
    chosen = attach(build("Llama"), "road", {"group_size": 4}).peft_config["default"]
    assert chosen.group_size == 4


def test_experts_have_matrices_of_their_own():
    model = attach(build("Mixtral"), "lora", dict(OPTIONS["lora (experts)"], rank=2))
    blocks = zopeft.discover(model)
    shapes = {(b.role, b.shape) for b in blocks}
    assert shapes == {
        ("lora_A", (8, 32)),
        ("lora_B", (96, 8)),
        ("lora_A", (8, 48)),
        ("lora_B", (32, 8)),
    }


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("trainable-tokens", {}, "the tokens must be named"),
        ("cartridge", {"tokens": 2, "num_frozen_tokens": 2}, "got '2 and 2'"),
        ("hira", {"rank": 8, "alpha": 3}, "unknown option, got 'alpha'"),
        ("adamss", {"use_asa": True}, "use_asa prunes by gradients"),
    ],
)
def test_bad_options_are_refused(name, options, told):
    with pytest.raises(InputError, match=f"peft {name}: ") as caught:
        attach(build("Llama"), name, options)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "bits"), [("hra", 8), ("unilora", 8), ("lokr", 4), ("deft", 4)])
def test_types_that_read_packed_weights_as_numbers_are_refused(name, bits):
    pytest.importorskip("bitsandbytes")
    model, _ = load_model(**{f"load_in_{bits}bit": True})
    with pytest.raises(InputError, match=f"peft {name}: PEFT does not have it for {bits}-bit"):
        attach(model, name)
