"""Packed batches: the padded loss for every family and kind of weights, row by row."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from transformers import AutoModelForCausalLM

import zopeft
from zopeft.errors import InputError
from zopeft.models import attach
from zopeft.probing.packed import LAYOUT, with_layout
from zopeft.probing.trial import TOLERANCE, choose
from zopeft.tasks import task_loss
from zopeft.tasks.dataset import Collator
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.loss import answer_losses, option_scores

WINDOW = 7
SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "tie_word_embeddings": False,
}
GATED = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1, "initializer_range": 0.3}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
GPT2 = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 48} | {
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES = {
    "llama": lambda: t.LlamaConfig(**GATED),
    "qwen2": lambda: t.Qwen2Config(**GATED, use_sliding_window=True, **MIXED),
    "qwen3": lambda: t.Qwen3Config(**GATED, head_dim=8),
    "mistral": lambda: t.MistralConfig(**GATED, sliding_window=WINDOW),
    "gemma2": lambda: t.Gemma2Config(**GATED, **MIXED, **ENDS, head_dim=8),
    "gemma3": lambda: t.Gemma3TextConfig(**GATED, **MIXED, **ENDS, head_dim=8),
    "phi": lambda: t.PhiConfig(**GATED),
    "gpt2": lambda: t.GPT2Config(**GPT2),
    "opt": lambda: t.OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=16, init_std=0.3),
    "gpt_neox": lambda: t.GPTNeoXConfig(**SIZES, intermediate_size=24, initializer_range=0.3),
}
OTHERS = {
    "bloom": lambda: t.BloomConfig(vocab_size=61, hidden_size=16, n_layer=2, n_head=2),
    "falcon": lambda: t.FalconConfig(
        vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, alibi=True
    ),
    "gpt_neo": lambda: t.GPTNeoConfig(
        vocab_size=61,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=48,
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2),
    "lfm2": lambda: t.Lfm2Config(**GATED, layer_types=["conv", "full_attention"]),
}
SPACES = ("full", "lora", "prefix", "prompt")


class Ends:
    pad_token_id = eos_token_id = 0


COLLATE = Collator(Ends())


def numbers(seed, count):
    return torch.randint(3, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def choices():
    """Examples with options of several tokens and of one, and prompts that begin alike."""
    start = tuple(numbers(0, 3))
    made = []
    sizes = [(9, 3, 2), (2, 1, 1, 1), (14, 1, 4), (5, 6, 6), (1, 1, 2), (3, 1, 1)]
    for seed, (prompt, *options) in enumerate(sizes):
        ids = start + tuple(numbers(1 + seed, prompt))
        texts = tuple(tuple(numbers(10 * seed + n, size)) for n, size in enumerate(options))
        made.append(Encoded((ids,) * len(texts), texts, seed % 2))
    return made


def answers():
    return [Encoded((e.prompts[0],), (e.options[-1],)) for e in choices()]


def model_of(family, space="full"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config({**FAMILIES, **OTHERS}[family]()).eval()
    if space != "full":
        model = attach(model, space, {}, seed=1)
        for parameter in zopeft.discover(model).parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def laid(model, batch, loss=task_loss, join=True):
    """The batch in shared rows, whether or not that pays for so small a model."""
    found = with_layout(model, batch, loss.needed(batch), join, trial=True)
    assert found is not None and len(found[LAYOUT].ids) < len(batch["input_ids"])
    assert found[LAYOUT].joined or not join
    return found


@torch.no_grad()
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_losses_are_the_padded_ones(family, space):
    model = model_of(family, space)
    for examples in (choices(), answers()):
        batch = COLLATE(examples)
        padded = task_loss(model, batch)
        for join in (True, False):
            packed = task_loss(model, laid(model, batch, join=join))
            assert packed == pytest.approx(float(padded), rel=TOLERANCE)
        copies = task_loss.stacked(model, laid(model, batch), 2)
        assert copies.tolist() == pytest.approx([float(padded)] * 2, rel=TOLERANCE)
    model_own = zopeft.BatchLoss(model, batch)
    packed = zopeft.BatchLoss(model, batch, layout="packed")
    assert packed.tokens < model_own.tokens
    assert float(packed()) == pytest.approx(float(model_own()), rel=TOLERANCE)
    assert packed.stacked(2).tolist() == pytest.approx([float(model_own())] * 2, rel=TOLERANCE)
    assert choose(model, batch, task_loss, "auto").way == "joined"


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_closures_take_packed_batches(family):
    model, batch = model_of(family), COLLATE(answers())
    packed = zopeft.packed(batch, model)
    # OPT does not tell transformers' masks where texts begin.
    assert ("attention_mask" in packed) == (family == "opt")
    assert packed["input_ids"].numel() < batch["input_ids"].numel()
    loss = float(model(**batch).loss)
    assert float(model(**packed).loss) == pytest.approx(loss, rel=TOLERANCE)
    if family != "opt":
        alone = zopeft.packed(batch)
        assert float(model(**alone).loss) == pytest.approx(loss, rel=TOLERANCE)


@torch.no_grad()
def test_a_text_behind_the_window_is_out_of_sight():
    """The windows of the test above matter: another window is another loss, packed as well."""
    batch = COLLATE(choices())
    for family in ("mistral", "gemma3", "qwen2"):
        model = model_of(family)
        packed = float(task_loss(model, laid(model, batch)))
        model.config.sliding_window = 3 * WINDOW
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 3 * WINDOW
        assert abs(float(task_loss(model, batch)) - packed) > 1e-3
        assert float(task_loss(model, laid(model, batch))) == pytest.approx(
            float(task_loss(model, batch)), rel=TOLERANCE
        )


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_text_does_not_depend_on_its_neighbours(family):
    model = model_of(family)
    texts = [*answers(), Encoded((tuple(numbers(40, 20)),), (tuple(numbers(41, 10)),))]

    def losses(group):
        found, rows = answer_losses(model, laid(model, COLLATE(group), join=len(group) > 3))
        return [found[rows == row] for row in range(len(group))]

    usual = losses(texts)
    moved = losses([*texts[2:], *texts[:2]])
    fewer = losses(texts[1:])
    beside_the_longest = losses([texts[0], texts[1], texts[-1]])
    for one, other in [
        *zip(usual, [*moved[-2:], *moved[:-2]], strict=True),
        *zip(usual[1:], fewer, strict=True),
        *zip([*usual[:2], usual[-1]], beside_the_longest, strict=True),
    ]:
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def test_what_cannot_be_packed_runs_padded():
    batch = COLLATE(choices())
    found = {family: choose(model_of(family), batch, task_loss, "auto") for family in OTHERS}
    ways = {family: choice.way for family, choice in found.items()}
    assert ways == {
        "bloom": "packed",
        "falcon": "packed",
        "gpt_neo": "packed",
        "mamba": "padded",
        "lfm2": "padded",
    }
    assert "shared rows change its loss" in found["lfm2"].reason
    assert "makes no mask" in found["mamba"].reason
    with pytest.raises(InputError, match="layout: cannot be packed: its attention makes no mask"):
        choose(model_of("mamba"), batch, task_loss, "packed")
    with pytest.raises(InputError, match="layout: unknown way"):
        zopeft.BatchLoss(model_of("llama"), batch, layout="tight")
    mamba, plain = model_of("mamba"), COLLATE(answers())
    assert zopeft.packed(plain, mamba).keys() == plain.keys()
    assert zopeft.BatchLoss(mamba, plain, layout="auto").batch is plain


@torch.no_grad()
def test_a_prefix_is_not_packed_for_a_plain_closure():
    model, batch = model_of("llama", "prefix"), COLLATE(answers())
    assert zopeft.packed(batch, model).keys() == batch.keys()


@torch.no_grad()
def test_batches_that_packing_does_not_shorten_are_left_alone():
    model = model_of("llama")
    rows = [Encoded((tuple(numbers(s, 7)),), (tuple(numbers(s + 1, 2)),)) for s in (1, 3, 5)]
    batch = COLLATE(rows)
    assert zopeft.BatchLoss(model, batch, layout="packed").batch is batch
    answered = COLLATE(answers())
    more = {**answered, "token_type_ids": torch.zeros_like(answered["labels"])}
    assert zopeft.packed(more).keys() == more.keys()


@torch.no_grad()
def test_a_mask_never_takes_more_than_the_padded_batch(monkeypatch):
    model, batch = model_of("llama"), COLLATE(answers())
    assert LAYOUT in zopeft.BatchLoss(model, batch, task_loss, layout="packed").batch
    monkeypatch.setattr("zopeft.probing.packed.FREE", 0)
    monkeypatch.setattr("zopeft.probing.packed.DOUBLED", {2: 1, 4: 1})
    assert zopeft.BatchLoss(model, batch, task_loss, layout="packed").batch is batch


def test_a_trial_does_not_make_long_rows():
    model = model_of("llama")
    for examples in (choices(), answers()):
        batch = COLLATE(examples * 3)
        for join in (True, False):
            layout = laid(model, batch, join=join)[LAYOUT]
            assert layout.ids.shape[1] < 2 * batch["input_ids"].shape[1]


@torch.no_grad()
def test_scores_of_options_are_the_padded_ones():
    model, batch = model_of("gemma3", "lora"), COLLATE(choices())
    torch.testing.assert_close(
        option_scores(model, laid(model, batch)), option_scores(model, batch)
    )


def test_the_masks_of_other_forwards_are_left_alone():
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as INTERFACE

    model, batch = model_of("llama"), COLLATE(choices())
    before = dict(INTERFACE)
    with torch.no_grad():
        task_loss(model, laid(model, batch))
        with pytest.raises(RuntimeError, match="broken"):
            model.model.norm.register_forward_hook(broken)
            task_loss(model, laid(model, batch))
    assert dict(INTERFACE) == before and not INTERFACE._local_mapping


def broken(*_):
    raise RuntimeError("broken")
