"""Estimates of memory: rehearsed without values, compared with the real thing."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from zopeft.blocks import discover
from zopeft.errors import InputError
from zopeft.jobs.estimate import finetuner_sizes
from zopeft.jobs.memory import CONTEXT, estimate
from zopeft.jobs.rehearsal import Ledger, Rehearsal
from zopeft.methods import METHODS
from zopeft.models import attach, load_model, resolve
from zopeft.models.skeleton import load_config, outline, skeleton
from zopeft.recipe.meta_schema import MetaSection
from zopeft.recipe.schema import ModelSection, Recipe

B, T = 3, 17


@pytest.fixture(scope="module")
def config(tiny_model):
    return load_config(resolve(str(tiny_model)))


@pytest.fixture(scope="module")
def one_layer(tiny_model, tmp_path_factory):
    """A folder with the configuration alone, of one layer: as much as most estimates need."""
    folder = tmp_path_factory.mktemp("layer")
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    return folder


def real_peak(model, backward):
    """Bytes that the operations of a real step hold at most."""
    tokens = torch.zeros(B, T, dtype=torch.long)
    with Ledger(model) as ledger, torch.set_grad_enabled(backward):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        if backward:
            loss.backward()
    return ledger.peak


@pytest.mark.parametrize("backward", [False, True])
def test_a_rehearsal_holds_what_a_real_step_holds(backward, tiny_model, config):
    model, _ = load_model(str(tiny_model))
    rehearsal = Rehearsal(outline(config, "tiny", torch.float32))
    step = rehearsal.backward if backward else rehearsal.forward
    assert step(B, T) == pytest.approx(real_peak(model.train(backward), backward), rel=0.02)


def test_a_skeleton_has_the_shapes_and_ties_of_the_model(tiny_model):
    model, _ = load_model(str(tiny_model))
    bare = skeleton(str(tiny_model))
    assert bare.device.type == "meta"
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def needs_of(tiny_model, **options):
    return {need.name: need for need in estimate(str(tiny_model), **options)}


def test_the_parts_are_counted(tiny_model):
    model, _ = load_model(str(tiny_model))
    weights = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    count = sum(p.numel() for p in model.parameters())
    lora = [p for p in attach(model, "lora").parameters() if p.requires_grad]
    adapter = sum(p.nbytes for p in lora)
    needs = needs_of(tiny_model, batch_size=B, length=64, dtype=torch.float32)
    assert list(needs) == [
        "inference",
        "zeroth-order, lora",
        "zeroth-order, full",
        "Adam, lora",
        "Adam, checkpointing, lora",
        "Adam, full",
    ]
    assert {need.weights for need in needs.values()} == {weights}
    assert needs["Adam, lora"].adapter == adapter
    assert needs["Adam, lora"].state == 3 * adapter
    assert needs["Adam, full"].state == 3 * 4 * count
    # An fp32 master of what is trained, and the networks of a fine-tuner.
    assert needs["zeroth-order, lora"].state == adapter + 4 * 449 * len(lora)
    assert needs["zeroth-order, lora"].activations == needs["inference"].activations
    logits = B * 64 * model.config.vocab_size * 4
    assert needs["inference"].activations > 2 * logits
    totals = [needs[name].total for name in needs]
    assert totals[0] < totals[1] < totals[4] < totals[3] < totals[5]


def test_half_and_quantised_weights_are_smaller(one_layer):
    full, half = (
        needs_of(one_layer, batch_size=1, length=8, dtype=dtype)["inference"].weights
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half == pytest.approx(full / 2, rel=0.01)
    sizes = {}
    for bits in (8, 4):
        needs = needs_of(one_layer, batch_size=1, length=8, dtype=torch.bfloat16, bits=bits)
        assert not any("full" in name for name in needs)
        sizes[bits] = needs["inference"].weights
    bare = skeleton(str(one_layer), torch.bfloat16)
    linear = [
        m.weight for n, m in bare.named_modules() if type(m).__name__ == "Linear" and "layers" in n
    ]
    count = sum(w.numel() for w in linear)
    assert len(linear) == 7
    assert half - sizes[8] == 2 * count - count - 4 * sum(w.shape[0] for w in linear)
    assert half - sizes[4] == 2 * count - sum(
        w.numel() // 2 + -(-w.numel() // 64) * 4 for w in linear
    )


def test_large_weights_in_16_bit_need_no_master(tmp_path):
    from transformers import LlamaConfig

    # 16 million weights: more than are kept in a master, quick to rehearse.
    wide = LlamaConfig(
        vocab_size=32000, hidden_size=256, intermediate_size=512, num_hidden_layers=1
    )
    wide.save_pretrained(tmp_path)
    needs = needs_of(tmp_path, batch_size=1, length=8, dtype=torch.bfloat16)
    full = needs["zeroth-order, full"]
    assert full.state < 100_000
    assert full.total < needs["inference"].total + 200e6
    assert needs["Adam, full"].total > 3.9 * needs["inference"].weights


def held(value):
    """Returns the bytes of all tensors in a method's state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(held, parts))


@pytest.mark.parametrize("space", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mezo_adam", {}),
        ("lozo_m", {"r": 3}),
        ("hizoo", {"per": "block"}),
        ("zo_mopi", {"r": 4, "k": 2}),
    ],
)
def test_declared_state_is_counted(name, own, space, tiny_model, config):
    model, bare = load_model(str(tiny_model))[0], outline(config, "tiny", torch.float32)
    if space == "lora":
        model, bare = attach(model, space), attach(bare, space)
    optimizer = METHODS[name](discover(model), lr=1e-3, **own)
    tokens = torch.arange(8)[None]
    for _ in range(2):
        optimizer.step(lambda: model(input_ids=tokens, labels=tokens).loss)
    real = sum(held(optimizer.kept[key]) for key in optimizer.kept.declared)
    blocks = discover(bare)
    assert {block.parameter.device.type for block in blocks} == {"meta"}
    assert METHODS[name].state_on(blocks, own).bytes() == real > 0


def test_estimates_of_methods_that_have_none():
    with pytest.raises(InputError, match="--method: takes a zeroth-order method, got 'fo_adam'"):
        estimate(method="fo_adam")
    with pytest.raises(InputError, match="unknown method, got 'mezo_adan'; did you mean"):
        estimate(method="mezo_adan")
    with pytest.raises(InputError, match="LOZOM r: must be >= 1 and <= 64, got 0"):
        estimate(method="lozo_m", own={"r": 0})


FROM_WEIGHTS = {"cartridge", "frod", "shira", "tinylora", "unilora", "vblora", "waveft"}
ESTIMATED = ["lora", "dora", "adalora", "vera", "prefix", "p-tuning", "layernorm", "hra", "c3a"]


@pytest.mark.parametrize("name", sorted(FROM_WEIGHTS))
def test_a_type_that_is_made_from_weights_is_one_line(name, one_layer):
    with pytest.raises(InputError, match="measure a short run instead") as caught:
        needs_of(one_layer, adapter=name, batch_size=1, length=8, dtype=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ESTIMATED)
def test_a_peft_type_is_estimated(name, one_layer):
    needs = needs_of(one_layer, adapter=name, batch_size=1, length=8, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(load_config(resolve(str(one_layer))))
    trained = attach(model, name).parameters()
    size = sum(p.nbytes for p in trained if p.requires_grad)
    # On the meta device AdaLoRA's counters of ranks, 4 bytes a module, pass for trainable.
    assert needs[f"zeroth-order, {name}"].adapter == pytest.approx(size, rel=0.01)
    assert needs[f"Adam, {name}"].total > needs["inference"].total


def test_a_model_that_asks_for_values_is_one_line():
    class Asks(torch.nn.Linear):
        def tie_weights(self):
            pass

        def forward(self, input_ids, labels, use_cache):
            return input_ids if bool(self.weight.sum() > 0) else labels

    with pytest.raises(InputError, match="Asks: its step cannot be rehearsed"):
        Rehearsal(Asks(2, 2, device="meta")).forward(1, 4)


def test_the_command(zopeft_command, one_layer):
    # The configuration is enough.
    words = ("estimate", one_layer, "--batch-size", 2, "--length", 16, "--dtype", "float32")
    totals = [need["total"] for need in zopeft_command.json(*words)["needs"]]
    assert totals[0] < totals[2]
    between = (CONTEXT + (totals[0] + totals[2]) / 2) / 1e9
    found = zopeft_command.json(*words, "--memory", between)
    assert (found["batch_size"], found["length"], found["dtype"]) == (2, 16, "float32")
    assert [need["fits"] for need in found["needs"]].count(True) >= 1
    assert not found["needs"][2]["fits"]
    for need in found["needs"]:
        parts = ("weights", "adapter", "state", "scratch", "activations")
        assert need["total"] == sum(need[part] for part in parts)
    sizes = found["finetuner"]
    # 12 networks of 5 inputs and 64 hidden units; 9 matrices of 16 directions a side at most.
    assert sizes["scales"] == {"file_bytes": 4 * 12 * 449, "memory_bytes": 4 * 12 * 449}
    bases = (sizes["subspace"]["file_bytes"] - sizes["scales"]["file_bytes"]) // 2
    assert sizes["subspace"]["memory_bytes"] == 4 * 12 * 449 + 4 * bases
    prefix = zopeft_command.json(*words, "--prefix", "peft.options.tokens=7")
    assert prefix["needs"][1]["name"] == "zeroth-order, prefix"
    assert prefix["needs"][1]["adapter"] == 7 * 2 * 8 * 4
    rows = zopeft_command.json(*words, "--method", "lozo_m", "method.r=3")["needs"]
    assert [need["name"] for need in rows[1:3]] == ["lozo_m, lora", "lozo_m, full"]
    declared = METHODS["lozo_m"].state_on(discover(skeleton(str(one_layer))), {"r": 3}).bytes()
    networks = sizes["scales"]["memory_bytes"]
    assert rows[2]["state"] - found["needs"][2]["state"] == declared - networks
    code, out, err = zopeft_command(*words, "--load-in-4bit")
    assert code == 0, err
    title = " ".join(out.split())  # a long folder name wraps it
    assert "16 tokens, MB" in title  # a few kilobytes are not shown as 0.00 GB
    assert "(4 bit)" in title and "Adam, full" not in title
    if not torch.cuda.is_available():
        assert "--memory GB" in err


def test_a_fine_tuner_of_llama_1b(tmp_path):
    """From the configuration alone, against a count by hand."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    meta = MetaSection(rank=16)
    sizes = finetuner_sizes(Recipe(model=ModelSection(name=str(tmp_path)), meta=meta))
    networks = (16 * 9 + 2) * (64 * 7 + 1)
    layer = 2 * (2048 + 2048) + 2 * (512 + 2048) + 3 * (8192 + 2048)
    # The embedding has rows by frequency in place of a subspace.
    bases = 16 * (16 * layer)
    assert sizes["scales"] == {"file_bytes": 4 * networks, "memory_bytes": 4 * networks}
    assert sizes["subspace"]["file_bytes"] == 4 * networks + 2 * bases
    assert sizes["subspace"]["memory_bytes"] == 4 * networks + 4 * bases
    assert 22e6 < sizes["subspace"]["file_bytes"] < 24e6
    meta = MetaSection(rank=16, rows="none")
    sizes = finetuner_sizes(Recipe(model=ModelSection(name=str(tmp_path)), meta=meta))
    bases += 16 * (128256 + 2048)
    assert sizes["subspace"]["file_bytes"] == 4 * networks + 2 * bases
    # By forward passes alone, directions of the inputs are learned and nothing else.
    meta = MetaSection(gradients="forward", input_rank=32, rows="none")
    sizes = finetuner_sizes(Recipe(model=ModelSection(name=str(tmp_path)), meta=meta))
    inputs = 16 * 32 * (6 * 2048 + 8192)
    assert sizes["subspace"]["file_bytes"] == 4 * networks + 2 * inputs


def test_bad_input(zopeft_command, tiny_model, tmp_path):
    assert "no config.json" in zopeft_command.refused("estimate", tmp_path)
    assert "unknown model" in zopeft_command.refused("estimate", "lama-3.2-1b")
    assert "unknown peft type" in zopeft_command.refused("estimate", tiny_model, "--peft", "lorra")
    assert "must be above 0" in zopeft_command.refused("estimate", tiny_model, "--memory", -1)
    assert "--length" in zopeft_command.refused("estimate", tiny_model, "--length", "few")
    words = ("--load-in-8bit", "--load-in-4bit")
    assert "--load-in" in zopeft_command.refused("estimate", tiny_model, *words)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in zopeft_command.refused("estimate", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "causal" in zopeft_command.refused("estimate", tmp_path)
    line = zopeft_command.refused("estimate", "llama-3.2-1b")
    assert "llama-3.2-1b: the config.json of meta-llama/Llama-3.2-1B is neither here" in line
    with pytest.raises(InputError, match="must be 1 or more"):
        estimate(str(tiny_model), batch_size=0)
