"""What a step holds beyond what a forward pass of the same batch holds."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.jobs.rehearsal import Ledger
from zopeft.noise import NOISES

SCRATCH = 64 * 2**20
SMALL = 4096
"""Bytes for scalars: losses, scales."""


@pytest.fixture(scope="module")
def model():
    """160 MB of weights, of which a step may hold no copy."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000,
        hidden_size=640,
        intermediate_size=2560,
        num_hidden_layers=5,
        num_attention_heads=10,
        num_key_value_heads=10,
    )
    return LlamaForCausalLM(config).eval()


def closure_of(model):
    ids = torch.arange(12).view(1, 12)
    return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss


@torch.no_grad()
def peak_of(model, call):
    call()
    with Ledger(model) as ledger:
        call()
    return ledger.peak


def weights_of(model):
    return sum(p.nbytes for p in model.parameters())


def methods():
    found = {noise: {"noise": noise} for noise in NOISES}
    found["directions"] = {"directions": 3}
    found["one-sided"] = {"directions": 3, "sides": "one"}
    assert len(found) >= 6
    return found


@pytest.mark.parametrize("name", list(methods()))
def test_full_weights_cost_one_scratch_chunk(name, model):
    closure = closure_of(model)
    inference = peak_of(model, closure)
    optimizer = zopeft.MeZO(zopeft.discover(model), lr=1e-9, eps=1e-3, **methods()[name])
    beyond = peak_of(model, lambda: optimizer.step(closure)) - inference
    assert weights_of(model) > 2.2 * SCRATCH
    assert beyond <= SCRATCH + weights_of(model) / 100


def test_a_fine_tuner_costs_no_more(model):
    blocks, closure = zopeft.discover(model), closure_of(model)
    inference = peak_of(model, closure)
    finetuner = zopeft.FineTuner.initial(blocks)
    optimizer = zopeft.ZOFineTuner(blocks, finetuner, lr=1e-9, eps=1e-3)
    beyond = peak_of(model, lambda: optimizer.step(closure)) - inference
    assert beyond <= SCRATCH + weights_of(model) / 100


@pytest.mark.parametrize("probes", ["separate", "stacked"])
@pytest.mark.parametrize("noise", list(NOISES))
def test_a_lora_costs_its_adapter_a_few_times(noise, probes, model):
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).eval()
    try:
        ids = torch.arange(12).view(1, 12)
        batch = {"input_ids": ids, "labels": ids}
        closure = zopeft.BatchLoss(wrapped, batch)
        # Two probes in one forward hold the activations of two batches, and both adapters.
        rows, most = (2, 3) if probes == "stacked" else (1, 2)
        # The factors of a direction are a good part of so slim a matrix.
        most += noise == "low_rank"
        plain = zopeft.BatchLoss(wrapped, {k: v.repeat(rows, 1) for k, v in batch.items()})
        inference = peak_of(wrapped, plain)
        blocks = zopeft.discover(wrapped)
        optimizer = zopeft.MeZO(blocks, lr=1e-9, eps=1e-3, noise=noise, probes=probes)
        beyond = peak_of(wrapped, lambda: optimizer.step(closure)) - inference
        assert 0 < beyond <= most * sum(b.parameter.nbytes for b in blocks) + SMALL
    finally:
        wrapped.unload()
