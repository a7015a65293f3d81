"""Estimates of zeroth-order steps, against the tensors that real ones hold."""

import copy
import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

import zopeft
from zopeft.engine import carrying, layers
from zopeft.jobs import memory, probe_memory
from zopeft.jobs.memory import estimate
from zopeft.jobs.rehearsal import Ledger

B, T = 3, 50
LLAMA = LlamaConfig(
    vocab_size=1500,
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
# Biases, and a head that is tied to the embedding.
OPT = OPTConfig(
    vocab_size=1500,
    hidden_size=64,
    ffn_dim=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    word_embed_proj_dim=64,
    max_position_embeddings=64,
    dropout=0.0,
)
CHUNK = 1 << 13
"""As the real one is to real layers: the head is wider, and all others but the MLP's are not."""


@pytest.fixture(autouse=True)
def _zeroth_order_alone(monkeypatch):
    """Leaves out Adam, which is rehearsed for longest and asked for in test_models_memory.py."""
    monkeypatch.setattr(memory.Plan, "adam", lambda plan, adapter="full": [])


@pytest.fixture
def large(monkeypatch):
    """Has the models here held as those are that are too large to be held flat."""
    for module in (carrying, memory):
        monkeypatch.setattr(module, "SMALL", 0)
    for module in (layers, probe_memory):
        monkeypatch.setattr(module, "CHUNK", CHUNK)


def made(config, **given):
    """A model whose configuration stays as it is: a dtype is written into it."""
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), **given)


@torch.no_grad()
def beyond(model, **options):
    """Returns the bytes that making a run and its steps hold beyond a forward pass."""
    tokens = torch.arange(T).repeat(B, 1)
    batch = {"input_ids": tokens, "labels": tokens, "use_cache": False}
    # Whatever others left in circles must not be freed while something is counted.
    gc.collect()
    with Ledger(model) as forward:
        model(**batch)
    blocks = zopeft.discover(model)
    gc.collect()
    with Ledger(model) as ledger:
        optimizer = zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, **options)
        for _ in range(2):
            optimizer.step(lambda: model(**batch).loss)
    assert optimizer.steps == 2 and ledger.peak > forward.peak > 0
    # Weights that are held flat lie in a buffer, which takes the place of their own memory.
    moved = sum(c.work.nbytes for c in optimizer.engine.carriers if hasattr(c, "work"))
    return ledger.peak - forward.peak - moved


def counted(config, model, folder, name, options):
    """Returns the same as the estimate has it, without the networks of a fine-tuner."""
    config.save_pretrained(folder)
    size = {"batch_size": B, "length": T, "dtype": model.dtype}
    needs = {n.name: n for n in estimate(str(folder), **size, rank=options.get("rank", 0))}
    need = needs[f"zeroth-order, {name}"]
    networks = 4 * 449 * sum(p.requires_grad for p in model.parameters())
    return need.total - needs["inference"].total - need.adapter - networks


LOW_RANK = {"noise": "low_rank", "rank": 4}
CASES = [
    (LLAMA, torch.float32, {}),
    (LLAMA, torch.bfloat16, {}),
    (LLAMA, torch.float32, LOW_RANK),
    (OPT, torch.float32, {}),
    (OPT, torch.float32, LOW_RANK),
]


@pytest.mark.parametrize(("config", "dtype", "options"), CASES)
def test_full_weights(config, dtype, options, large, tmp_path):
    model = made(config, dtype=dtype).eval()
    expected = counted(config, model, tmp_path, "full", options)
    assert beyond(model, **options) == pytest.approx(expected, rel=0.1)


def test_small_weights_are_held_flat(tmp_path):
    model = made(LLAMA).eval()
    expected = counted(LLAMA, model, tmp_path, "full", {})
    assert beyond(model) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("dtype", "options"), [(torch.bfloat16, {}), (torch.float32, LOW_RANK)])
def test_a_lora(dtype, options, tmp_path):
    model = made(LLAMA, dtype=dtype)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).eval()
    expected = counted(LLAMA, wrapped, tmp_path, "lora", options)
    assert beyond(wrapped, **options) == pytest.approx(expected, rel=0.1)


def test_both_probes_of_a_small_batch_hold_two(tmp_path):
    LLAMA.save_pretrained(tmp_path)
    needs = [estimate(str(tmp_path), batch_size=2, length=16, stacked_tokens=n) for n in (31, 32)]
    apart, stacked = (next(n for n in found if n.name == "zeroth-order, lora") for found in needs)
    assert stacked.activations > 1.8 * apart.activations
    assert stacked.scratch - apart.scratch == 2 * apart.adapter
    full = [next(n for n in found if n.name == "zeroth-order, full") for found in needs]
    assert full[0] == full[1]


def test_both_twins_of_a_small_batch_are_counted(large, tmp_path):
    LLAMA.save_pretrained(tmp_path)
    given = {"batch_size": 2, "length": 16, "dtype": torch.bfloat16}
    needs = [estimate(str(tmp_path), **given, twinned_tokens=n) for n in (31, 32)]
    apart, stacked = (next(n for n in found if n.name == "zeroth-order, full") for found in needs)
    assert stacked.activations > 1.8 * apart.activations
    assert stacked.scratch > apart.scratch
    ranked = [estimate(str(tmp_path), **given, rank=2, twinned_tokens=n) for n in (31, 32)]
    assert ranked[0] == ranked[1]


def test_noise_is_made_in_memory_where_nothing_is_compiled(tmp_path, monkeypatch):
    LLAMA.save_pretrained(tmp_path)
    needs = []
    for missing in (False, True):
        if missing:
            monkeypatch.setattr(probe_memory.importlib.util, "find_spec", lambda _: None)
        needs.append({need.name: need for need in estimate(str(tmp_path), batch_size=1, length=8)})
    compiled, plain = (found["zeroth-order, full"] for found in needs)
    count = compiled.weights // 4
    assert plain.scratch - compiled.scratch == pytest.approx(32 * count, rel=0.01)
