"""Noise of the probes: measured over bases that round activations, and nowhere else."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.blocks.activations import rounds_inputs
from zopeft.engine import Engine
from zopeft.models import attach
from zopeft.probing.probe_noise import QUANTISED, SIXTEEN, ProbeNoise, measure_noise
from zopeft.probing.probing import LONG

IDS = torch.arange(2 * 9).view(2, 9) * 5 % 97
MEASURED = 9 + 8
"""Forward passes of the measurement."""


class Slope(nn.Module):
    """Weights whose loss is a bent slope, and as much noise as is asked for."""

    def __init__(self, noise, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(40))
        self.noise, self.calls = noise, 0
        generator = torch.Generator().manual_seed(3)
        self.goal = torch.randn(40, generator=generator)
        self.generator = torch.Generator().manual_seed(4 + seed)

    def loss(self):
        self.calls += 1
        drawn = torch.randn((), generator=self.generator, dtype=torch.float64)
        bent = (self.weight - self.goal).double()
        return (bent**2).sum() + (bent**3).sum() / 3.0 + self.noise * drawn


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_the_share_is_that_of_a_known_noise(sigma, one_sided):
    sigmas = []
    for seed in range(12):
        model = Slope(sigma, seed)
        engine = Engine(zopeft.discover(model))
        with torch.no_grad():
            found = measure_noise(engine, model.loss, None, 1e-2, seed, one_sided)
        assert (found.forward_passes, model.calls) == (MEASURED, MEASURED)
        assert torch.equal(model.weight, torch.zeros(40))
        sigmas.append(found.noise / math.sqrt(2.0))
        if sigma == 0.0:
            assert found.share < 1e-3
            assert found.line() == ""
        if sigma == 1.0:
            assert "of the difference of the probes' losses at eps 0.01 is noise" in found.line()
            assert 0.02 <= found.better_eps <= 0.1
    if sigma:
        mean = math.sqrt(sum(one**2 for one in sigmas) / len(sigmas))
        assert mean == pytest.approx(sigma, rel=0.3)


def test_a_small_noise_is_no_line_and_a_loss_that_is_not_finite_neither():
    model = Slope(0.0)
    engine = Engine(zopeft.discover(model))
    nan = torch.tensor(math.nan)
    with torch.no_grad():
        assert measure_noise(engine, lambda: nan, None, 1e-2, 0).line() == ""
        flat = measure_noise(engine, lambda: torch.tensor(2.0), None, 1e-2, 0)
    assert (flat.share, flat.line()) == (0.0, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            **sizes, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.15
        )
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def load(folder, kind):
    options = {"8bit": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True}}
    if kind in ("float", "bfloat16"):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(**options[kind])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).eval()


def stepped(folder, kind, eps, steps=1, silent=False, planned=0, **options):
    """Makes steps of MeZO over a LoRA; returns the method and its blocks' weights."""
    model = attach(load(folder, kind), "lora")
    blocks = zopeft.discover(model)
    method = zopeft.MeZO(blocks, lr=1e-4, eps=eps, **options)
    method.probing.steps_planned = planned
    if silent:
        method.probing.look_for_noise = lambda *_: 0
    for _ in range(steps):
        method.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    return method, [block.data.clone() for block in blocks]


@pytest.mark.parametrize("kind", ["float", "nf4"])
def test_other_bases_cost_nothing(folder, kind, caplog):
    method, _ = stepped(folder, kind, 1e-4, steps=2)
    assert not rounds_inputs(method.blocks.model)
    assert (method.forward_passes, method.probing.noise) == (4, None)
    assert caplog.text == ""


def test_an_8_bit_base_is_measured_once_and_told_where_it_matters(folder, caplog):
    with caplog.at_level(logging.WARNING, "zopeft"):
        method, weights = stepped(folder, "8bit", 1e-3, steps=2)
    assert rounds_inputs(method.blocks.model)
    assert method.forward_passes == MEASURED + 4
    assert method.probing.noise.share > 0.2
    told = [record for record in caplog.records if record.name.startswith("zopeft")]
    assert len(told) == 1
    assert "noise, since this base rounds activations; eps 0.0" in told[0].getMessage()
    # The steps are those of a run without the measurement, bit for bit.
    _, others = stepped(folder, "8bit", 1e-3, steps=2, silent=True)
    assert all(map(torch.equal, weights, others))


def test_long_runs_in_16_bit_are_measured_and_told(folder, caplog):
    with caplog.at_level(logging.WARNING, "zopeft"):
        short, _ = stepped(folder, "bfloat16", 1e-4, planned=LONG - 1)
        wide, _ = stepped(folder, "float", 1e-4, planned=LONG)
        assert (short.probing.noise, wide.probing.noise, caplog.text) == (None, None, "")
        long, weights = stepped(folder, "bfloat16", 1e-4, planned=LONG)
    assert long.forward_passes == MEASURED + 2
    # How much it is depends on how a processor sums in 16 bit.
    found = long.probing.noise
    assert (found.cause, found.share > 0.0) == (SIXTEEN, True)
    assert found.line() in caplog.text
    _, others = stepped(folder, "bfloat16", 1e-4, silent=True, planned=LONG)
    assert all(map(torch.equal, weights, others))


@pytest.mark.parametrize(
    ("cause", "told"),
    [(SIXTEEN, "sums in 16 bit are"), (QUANTISED, "this base rounds activations")],
)
def test_the_line_names_the_cause(cause, told):
    much = ProbeNoise(noise=0.4, size=0.5, eps=1e-3, forward_passes=17, cause=cause)
    assert much.line().startswith("eps: 80% of the difference")
    assert f"is noise, since {told}" in much.line()
    assert "; eps 0.01 has less of it" in much.line()
    assert ProbeNoise(noise=0.1, size=0.5, eps=1e-3, forward_passes=17, cause=cause).line() == ""


def test_a_trainer_tells_how_many_steps_are_to_come(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("zopeft.probing.probing.LONG", 2)
    model = attach(load(folder, "bfloat16"), "lora")
    args = zopeft.ZOTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-4, eps=1e-4, use_cpu=True
    )
    rows = [{"input_ids": row, "labels": row} for row in IDS] * 4
    trainer = zopeft.ZOTrainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.method.probing.noise.forward_passes == MEASURED


def test_an_8_bit_base_at_a_wide_eps_is_silent(folder, caplog):
    with caplog.at_level(logging.WARNING, "zopeft"):
        method, _ = stepped(folder, "8bit", 0.1)
    assert 0.0 < method.probing.noise.share < 0.2
    assert not any(record.name.startswith("zopeft") for record in caplog.records)


def test_steps_from_a_journal_are_not_measured(folder):
    method, weights = stepped(folder, "8bit", 1e-2)
    model = attach(load(folder, "8bit"), "lora")
    blocks = zopeft.discover(model)
    again = zopeft.MeZO(blocks, lr=1e-4, eps=1e-2)
    again.replay(method.last_record)
    assert all(torch.equal(b.data, w) for b, w in zip(blocks, weights, strict=True))
    again.step(lambda: model(input_ids=IDS, labels=IDS).loss)
    assert (again.forward_passes, again.probing.noise) == (2, None)


@pytest.mark.parametrize("mark", ["activation_scheme", "scheme", "act_quant_kwargs"])
def test_other_packages_are_told_by_their_attributes(mark):
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.LayerNorm(4), layer)
    assert not rounds_inputs(model)
    if mark == "activation_scheme":
        layer.activation_scheme = "dynamic"
    elif mark == "scheme":
        layer.quantization_scheme = type("Scheme", (), {"input_activations": object()})()
    else:
        layer.weight.act_quant_kwargs = object()
    assert rounds_inputs(model)
