"""Flash attention: all texts in one line, their borders told by positions alone.

The kernels need a GPU. What stands in for them here takes what transformers hands them, and
cuts the line where transformers does.
"""

from __future__ import annotations

import pytest
import torch
from test_packed_families import COLLATE, answers, choices, model_of
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence, _prepare_from_posids
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import zopeft
from zopeft.engine.carrier import UnstackableError
from zopeft.probing.packed import LAYOUT, with_layout
from zopeft.probing.trial import Choice, choose
from zopeft.tasks import task_loss

NAME = "flash_attention_by_hand"


def by_hand(
    module, query, key, value, mask, position_ids=None, scaling=None, sliding_window=None, **_
):
    """Attention of a line of texts, or of rows of one text each, with padding behind it."""
    key, value = (one.repeat_interleave(module.num_key_value_groups, 1) for one in (key, value))
    window = sliding_window or getattr(module, "sliding_window", None)
    if not _is_packed_sequence(position_ids, query.shape[0]):
        return causal(query, key, value, scaling, window).transpose(1, 2), None
    lines = (one.transpose(1, 2) for one in (query, key, value))
    *_, (borders, _), _ = _prepare_from_posids(*lines, position_ids)
    parts = [
        causal(*(one[:, :, a:b] for one in (query, key, value)), scaling, window)
        for a, b in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def causal(query, key, value, scaling, window):
    place = torch.arange(key.shape[2])
    ahead = place[-query.shape[2] :, None] - place[None, :]
    mask = (ahead >= 0) & (ahead < (window or len(place)))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, by_hand)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME, flash_attention_mask)


def flash(family, space="full"):
    model = model_of(family, space)
    getattr(model, "get_base_model", lambda: model)().config._attn_implementation = NAME
    return model


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3"])
@pytest.mark.parametrize("examples", [choices, answers])
def test_texts_stand_in_a_line(family, examples):
    model, batch = flash(family), COLLATE(examples())
    padded = float(task_loss(model_of(family), batch))
    assert float(task_loss(model, batch)) == pytest.approx(padded, rel=1e-5)
    closure = zopeft.BatchLoss(model, batch, task_loss, layout="auto")
    layout = closure.batch[LAYOUT]
    assert layout.ids.shape == (1, int(layout.ids.numel())) and not layout.joined
    assert layout.ids.numel() <= int(batch["attention_mask"].sum())
    assert float(closure()) == pytest.approx(padded, rel=1e-5)
    assert choose(model, batch, task_loss, "auto") == Choice("packed")
    with pytest.raises(UnstackableError):
        closure.stacked(2)


@torch.no_grad()
def test_a_line_for_a_plain_closure():
    model, batch = flash("llama", "lora"), COLLATE(answers())
    packed = zopeft.packed(batch, model)
    assert packed["input_ids"].shape == (1, int(batch["attention_mask"].sum()))
    assert float(model(**packed).loss) == pytest.approx(float(model(**batch).loss), rel=1e-5)


@torch.no_grad()
def test_a_prefix_is_not_put_before_a_line():
    model, batch = flash("llama", "prefix"), COLLATE(answers())
    assert with_layout(model, batch, task_loss.needed(batch), False) is None
    found = choose(model, batch, task_loss, "auto")
    assert found.way == "padded" and "virtual tokens" in found.reason


def test_probes_of_a_line_run_apart():
    model = flash("llama", "lora")
    method = zopeft.MeZO(zopeft.discover(model), lr=1e-3, eps=0.05, probes="stacked")
    method.estimate(zopeft.BatchLoss(model, COLLATE(choices()), task_loss, layout="packed"))
    found = torch.tensor(method._pending.losses())
    plain = model_of("llama", "lora")
    method = zopeft.MeZO(zopeft.discover(plain), lr=1e-3, eps=0.05, probes="separate")
    method.estimate(zopeft.BatchLoss(plain, COLLATE(choices()), task_loss))
    torch.testing.assert_close(found, torch.tensor(method._pending.losses()), rtol=1e-5, atol=0)
