"""How networks read features: compressed, so that norms of any size leave them able to learn."""

import json
import math

import pytest
import torch
from test_finetuner_controls import Tiny
from test_meta import batches, bits, loss_of
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import zopeft
from zopeft.engine import Engine
from zopeft.errors import InputError
from zopeft.finetuner import PAPER_FEATURES, STATE_FEATURES, FineTuner
from zopeft.finetuner.features import UNITS, compressed
from zopeft.finetuner.legacy import import_pickle
from zopeft.meta import MetaSettings
from zopeft.meta.paper_trainer import PaperTrainer

LARGEST = 3.7e4
"""Variance of the largest norm's weights of Gemma 3."""


def gemma():
    """A small Gemma 3 whose norms after attention and feed-forward are of the large ones' size."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.2,
        sliding_window=16,
    )
    model = Gemma3ForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_" in name:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values / values.std() * math.sqrt(LARGEST))
    return model


def hidden_of(finetuner, model):
    """What the hidden units of the large norms give, [n, H], as at a run's second step."""
    blocks = zopeft.discover(model)
    match = finetuner.match(blocks)
    mean, variance = Engine(blocks).statistics()
    losses, raw = torch.tensor([2.5, 2.4]), torch.full((len(blocks),), 0.7)
    x = finetuner.features(match, mean.float(), variance.float(), losses, raw)
    large = [i for i, block in enumerate(blocks) if "post_" in block.name]
    assert len(large) == 4 and float(variance[large].min()) == pytest.approx(LARGEST, rel=1e-3)
    nets, group = finetuner.nets, match.group[large]
    return torch.tanh(torch.einsum("nhf,nf->nh", nets.w1[group], x[large]) + nets.b1[group])


def saturated(finetuner, model):
    return float((hidden_of(finetuner, model).abs() > 0.9999).float().mean())


def test_norms_of_gemmas_size_do_not_saturate_the_networks():
    blocks = zopeft.discover(gemma())
    assert FineTuner.initial(blocks).config.inputs == "log"
    for seed in range(3):
        assert saturated(FineTuner.initial(blocks, seed=seed), gemma()) == 0.0
        raw = FineTuner.initial(blocks, seed=seed, inputs="raw")
        assert saturated(raw, gemma()) > 0.9


@pytest.mark.parametrize("inputs", ["log", "raw"])
def test_meta_training_moves_what_the_networks_of_large_norms_read(inputs):
    model = gemma()
    before = bits(model)
    blocks = zopeft.discover(model)
    finetuner = FineTuner.initial(blocks, inputs=inputs)
    start = finetuner.copy()
    settings = MetaSettings.of(objective="paper", steps=6, lr_pertnn=1e-3, optimizer="adam")
    PaperTrainer(model, batches(), loss_of, settings, blocks, finetuner).train()
    assert all(torch.equal(weight, before[name]) for name, weight in bits(model).items())
    large = [i for i, group in enumerate(finetuner.config.groups) if "post_" in group.key]
    moved = (finetuner.nets.w1 != start.nets.w1)[large].float().mean()
    # Adam moves whatever has a gradient. Raw, next to nothing has one.
    assert moved > 0.95 if inputs == "log" else moved < 0.3
    assert finetuner.distance(start)["total"] > 1e-4


def test_compression_is_its_formula():
    values = torch.tensor([0.0, -0.0, 1e-9, -1e-3, 0.02, -1.0, 190.0, LARGEST, -1e30])
    x = values.unsqueeze(1).expand(-1, 5)
    found = compressed(PAPER_FEATURES, x)
    for column, name in enumerate(PAPER_FEATURES):
        unit, span = UNITS[name]
        for value, seen in zip(values.tolist(), found[:, column].tolist(), strict=True):
            wanted = math.copysign(math.log1p(abs(value) / unit) / span, value)
            assert seen == pytest.approx(wanted, rel=1e-5)
    assert bool(found.isfinite().all()) and float(found[:8].abs().max()) < 11
    # What a model can hold, as the networks read it.
    assert found[7, 1] == pytest.approx(3.04, abs=0.01)
    # A feature without a unit stays as it is, also one that has not been seen.
    mixed = torch.tensor([[math.nan, 0.02], [0.5, -0.02]])
    told = compressed(("depth", "mean"), mixed)
    assert told[0, 0].isnan() and told[1, 0] == 0.5
    assert told[0, 1] == -told[1, 1] == pytest.approx(math.log1p(20) / 8)


def test_artifacts_of_before_and_imported_ones_read_raw_features(tmp_path):
    """Bit for bit what they gave, whatever a new one reads."""
    blocks = zopeft.discover(Tiny())
    mean, variance = Engine(blocks).statistics()
    args = (mean.float(), variance.float(), torch.tensor([2.0, 1.5]), torch.full((5,), 0.7))
    new = FineTuner.initial(blocks, seed=1)
    folder = new.save_pretrained(tmp_path / "f")
    again = FineTuner.from_pretrained(folder)
    assert again.config.inputs == "log"
    read = [one.features(one.match(blocks), *args) for one in (new, again)]
    assert torch.equal(*read)
    path = folder / "finetuner_config.json"
    values = json.loads(path.read_text())
    del values["inputs"]
    path.write_text(json.dumps({**values, "format_version": 2}))
    old = FineTuner.from_pretrained(folder)
    columns = [args[0], args[1], *(loss.expand(5) for loss in args[2]), args[3]]
    for one in (old, FineTuner.initial(blocks, seed=1, inputs="raw")):
        x = one.features(one.match(blocks), *args)
        assert one.config.inputs == "raw" and torch.equal(x, torch.stack(columns, 1))
        assert torch.equal(one.raw_scales(one.match(blocks), x), old.nets(x, torch.arange(5)))
    assert not torch.equal(x, read[0])
    nets = {name: _net(seed) for seed, (name, _) in enumerate(Tiny().named_parameters())}
    torch.save(nets, tmp_path / "f.pth")
    assert import_pickle(tmp_path / "f.pth").config.inputs == "raw"
    bounded = FineTuner.initial(blocks, output="bounded", features=STATE_FEATURES)
    assert bounded.config.inputs == "raw"
    with pytest.raises(InputError, match="inputs: unknown inputs, got 'logs'; did you mean 'log'"):
        FineTuner.initial(blocks, inputs="logs")


def _net(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
