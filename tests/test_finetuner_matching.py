"""Which group serves which block: same base, adapters on it, siblings, strangers."""

import pytest
import torch
from test_blocks_families import tiny

from zopeft.blocks import discover, keep_trainable
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner

peft = pytest.importorskip("peft")


def lora(model, *targets, **options):
    config = peft.LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM", **options)
    return discover(peft.get_peft_model(model, config))


def learned_on(blocks, **options):
    return FineTuner.initial(blocks, **options)


def served(match):
    return {row["block"]: (row["group"], row["how"]) for row in match.rows()}


@pytest.fixture(scope="module")
def full():
    return learned_on(discover(tiny("llama")))


def test_the_same_model_is_matched_by_name(full):
    blocks = discover(tiny("llama"))
    match = full.match(blocks)
    assert match.group.tolist() == list(range(21))
    assert set(match.how) == {"name"}
    assert bool(match.matched.all())
    assert match.report == "21 of 21 blocks matched (21 by name)"
    assert len(match.rows()) == 21


def test_order_and_freezing_do_not_matter(full):
    model = tiny("llama")
    keep_trainable(model, "v_proj")
    match = full.match(discover(model))
    assert served(match) == {
        f"model.layers.{i}.self_attn.v_proj.weight": (
            f"model.layers.{i}.self_attn.v_proj.weight",
            "name",
        )
        for i in (0, 1)
    }


def test_full_groups_drive_lora_blocks_on_the_same_tensors(full):
    blocks = lora(tiny("llama"), "q_proj", "down_proj", modules_to_save=["lm_head"])
    match = full.match(blocks)
    assert len(blocks) == 9
    assert match.count == 9
    assert [row["group"] for row in match.rows()] == [b.key for b in blocks]
    assert all(
        row["group_role"] == b.base_role for row, b in zip(match.rows(), blocks, strict=True)
    )


@pytest.mark.parametrize(
    ("family", "roles"), [("llama", {"k_proj", "v_proj"}), ("gpt2", {"qkv_proj"})]
)
def test_full_groups_drive_prefix_blocks(family, roles):
    full = learned_on(discover(tiny(family)))
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    blocks = discover(peft.get_peft_model(tiny(family), config))
    match = full.match(blocks)
    assert match.count == len(blocks) == 4
    assert {row["group_role"] for row in match.rows()} == roles
    assert [row["group_layer"] for row in match.rows()] == [0, 0, 1, 1]


def test_groups_learned_on_lora_keep_a_and_b_apart():
    own = learned_on(lora(tiny("llama"), "q_proj", "v_proj"))
    match = own.match(lora(tiny("llama"), "v_proj"))
    assert [(r["role"], r["group_role"], r["how"]) for r in match.rows()] == [
        ("lora_A", "lora_A", "name"),
        ("lora_B", "lora_B", "name"),
    ] * 2
    # What was learned on one tensor's adapter says nothing about another's.
    half = own.match(lora(tiny("llama"), "q_proj", "o_proj"))
    assert half.count == 4
    line = "4 of 8 blocks matched (4 by name); at the neutral scale 1: 2 lora_A, 2 lora_B"
    assert half.report == line


def test_groups_learned_on_lora_refuse_full_weights():
    own = learned_on(lora(tiny("llama"), "q_proj"))
    with pytest.raises(InputError, match="none of its groups matches") as caught:
        own.match(discover(tiny("llama")))
    assert "it serves lora_A, lora_B" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_size_of_the_family_goes_by_relative_depth(full):
    deep = discover(tiny("llama", num_hidden_layers=5, hidden_size=32))
    match = full.match(deep)
    assert match.count == len(deep) == 48
    for row in match.rows():
        if row["layer"] is None:
            assert row["how"] == "name"
        else:
            assert row["how"] == "depth"
            assert row["group_layer"] == (0 if row["layer"] <= 2 else 1)
            assert row["group_role"] == row["role"]


def test_a_deep_finetuner_on_a_shallow_sibling():
    deep = learned_on(discover(tiny("llama", num_hidden_layers=7)))
    rows = deep.match(discover(tiny("llama", num_hidden_layers=3))).rows()
    layers = {(row["layer"], row["group_layer"]) for row in rows if row["layer"] is not None}
    assert layers == {(0, 0), (1, 3), (2, 6)}


def test_another_architecture_goes_by_role_and_layer_and_says_so(full):
    match = full.match(discover(tiny("opt")))
    rows = {row["block"]: row for row in match.rows()}
    out = rows["model.decoder.layers.1.self_attn.out_proj.weight"]
    assert (out["how"], out["group"]) == ("layer", "model.layers.1.self_attn.o_proj.weight")
    assert rows["model.decoder.embed_positions.weight"]["group"] is None
    assert rows["model.decoder.embed_tokens.weight"]["how"] == "layer"
    assert match.report.endswith("learned on LlamaForCausalLM, used on OPTForCausalLM")
    assert "at the neutral scale 1: 2 " in match.report
    assert match.report.count("_bias") == 6
    assert "and 6 more roles" in match.report


def test_nothing_in_common():
    full = learned_on(discover(tiny("llama")))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompt = discover(peft.get_peft_model(tiny("llama"), config))
    with pytest.raises(
        InputError, match=r"0 of 1 blocks matched; at the neutral scale 1: 1 prompt"
    ):
        full.match(prompt)
    match = full.match(prompt, allow_none=True)
    assert match.how == ("none",)
    x = full.features(match, torch.zeros(1), torch.ones(1), (1.0, 2.0), torch.ones(1))
    raw = full.raw_scales(match, x)
    assert raw.tolist() == [1.0]
    assert full.used_scales(match, raw, torch.tensor([48])).tolist() == [1.0]


def test_unmatched_blocks_get_one_and_the_rest_keep_their_budget(full):
    blocks = discover(tiny("qwen2"))
    match = full.match(blocks)
    n = len(blocks)
    x = full.features(match, torch.zeros(n), torch.ones(n), (1.0, 2.0), torch.ones(n))
    numels = torch.tensor(blocks.numels)
    used = full.used_scales(match, full.raw_scales(match, x), numels)
    assert {b.role for b, m in zip(blocks, match.matched, strict=True) if not m} == {
        "q_proj_bias",
        "k_proj_bias",
        "v_proj_bias",
    }
    assert bool((used[~match.matched] == 1).all())
    inside = match.matched
    budget = (numels[inside] * used[inside].square()).sum() / numels[inside].sum()
    assert float(budget.detach()) == pytest.approx(1, abs=1e-6)


def test_layer_sharing_serves_whatever_stands_in_the_layer():
    full = learned_on(discover(tiny("llama")), sharing="layer")
    match = full.match(lora(tiny("llama"), "q_proj", "up_proj"))
    assert set(match.how) == {"layer"}
    assert [row["group"] for row in match.rows()] == ["layer 0"] * 4 + ["layer 1"] * 4
    deep = full.match(discover(tiny("llama", num_hidden_layers=4)))
    assert {r["how"] for r in deep.rows() if r["layer"] is not None} == {"depth"}
    assert deep.count == 39


def test_blocks_of_no_known_role_are_not_paired():
    class Odd(torch.nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                setattr(self, name, torch.nn.Parameter(torch.zeros(2, 2)))

    match = learned_on(discover(Odd("a", "b"))).match(discover(Odd("b", "c")))
    assert served(match) == {"b": ("b", "name"), "c": (None, "none")}
