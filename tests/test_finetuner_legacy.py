"""The authors' pickles: converted to the same scales, refused when they carry code."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from test_blocks_families import tiny
from torch import nn

from zopeft.blocks import discover
from zopeft.engine import Engine
from zopeft.errors import InputError
from zopeft.finetuner import FineTuner
from zopeft.finetuner.legacy import import_pickle
from zopeft.finetuner.pickled import read_pickle

REAL = Path(__file__).parents[2] / "shared" / "finetuners" / "llama1B_finetuner.pth"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="the authors' file is not here")


def networks(names, dtype=torch.float32, inputs=5, hidden=64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {
            name: nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1)).to(
                dtype
            )
            for name in names
        }


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def official(nets, model, batch_size, losses, previous, world_size=1):
    """The authors' formula, one parameter at a time, in double precision."""
    sigma, weight = {}, {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().double()
        x = [values.mean(), values.var(), losses[0], losses[1], previous]
        net = nets[name].double()
        sigma[name] = net(torch.tensor([float(v) for v in x], dtype=torch.float64)).abs().item()
        count = parameter.numel()
        if "embed" in name:
            count = model.config.hidden_size * 15 * batch_size * world_size
        weight[name] = count * 1e-6
    total = sum(weight.values())
    power = sum(weight[name] * sigma[name] ** 2 for name in sigma)
    factor = total**0.5 / power**0.5
    return torch.tensor([factor * sigma[name] for name in sigma], dtype=torch.float64)


def ours(finetuner, model, losses, previous):
    blocks = discover(model)
    match = finetuner.match(blocks)
    assert set(match.how) == {"name"}
    mean, variance = Engine(blocks).statistics()
    last = torch.full((len(blocks),), previous)
    features = finetuner.features(match, mean.float(), variance.float(), losses, last)
    with torch.no_grad():
        raw = finetuner.raw_scales(match, features)
        return finetuner.used_scales(match, raw, torch.tensor(blocks.numels).float()).double()


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scales_are_those_of_the_authors_code(family, dtype, tmp_path):
    model = tiny(family)
    nets = networks(names_of(model), dtype)
    torch.save(nets, tmp_path / "f.pth")
    for losses, previous in (((0.0, 0.0), 1.0), ((2.5, 2.25), 0.375)):
        finetuner = import_pickle(tmp_path / "f.pth", "owner/base", batch_size=8)
        wanted = official(nets, model, 8, losses, previous)
        found = ours(finetuner, model, losses, previous)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    again = FineTuner.from_pretrained(finetuner.save_pretrained(tmp_path / "artifact"))
    assert torch.allclose(ours(again, model, losses, previous), wanted, rtol=1e-6, atol=1e-6)


def test_the_embedding_rule_matters_and_depends_on_the_batch(tmp_path):
    model = tiny("llama")
    nets = networks(names_of(model))
    torch.save(nets, tmp_path / "f.pth")
    small, large = (import_pickle(tmp_path / "f.pth", batch_size=b) for b in (1, 512))
    assert (small.config.embed_rows, large.config.embed_rows) == (15, 7680)
    a, b = (ours(one, model, (1.0, 1.0), 1.0) for one in (small, large))
    assert (a / b).std() < 1e-6
    assert abs(float((a / b)[0]) - 1) > 1e-3
    doubled = import_pickle(tmp_path / "f.pth", batch_size=8, world_size=2)
    wanted = official(nets, model, 8, (1.0, 1.0), 1.0, world_size=2)
    assert torch.allclose(ours(doubled, model, (1.0, 1.0), 1.0), wanted, rtol=1e-6, atol=1e-6)


@needs_real
def test_the_real_file_gives_the_official_scales():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=48,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.Tanh]):
        nets = torch.load(REAL, weights_only=True, map_location="cpu")
    assert set(nets) == set(names_of(model))
    finetuner = import_pickle(REAL, "meta-llama/Llama-3.2-1B")
    assert (len(finetuner.config.groups), finetuner.config.num_layers) == (146, 16)
    assert sum(p.numel() for p in finetuner.nets.parameters()) == 65554
    assert finetuner.config.base_model == "meta-llama/Llama-3.2-1B"
    for losses, previous in (((0.0, 0.0), 1.0), ((0.7, 0.69), 0.2)):
        wanted = official(nets, model, 16, losses, previous)
        found = ours(finetuner, model, losses, previous)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert import_pickle(REAL, blocks=discover(model)).config.groups == finetuner.config.groups


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt", "gpt2"])
def test_names_alone_say_what_the_model_says(family, tmp_path):
    model = tiny(family)
    blocks = discover(model)
    torch.save(networks(names_of(model), hidden=4), tmp_path / "f.pth")
    bare = import_pickle(tmp_path / "f.pth").config
    checked = import_pickle(tmp_path / "f.pth", blocks=blocks).config
    assert bare.groups == checked.groups
    assert bare.num_layers == checked.num_layers == blocks.num_layers
    assert bare.architecture == checked.architecture == blocks.architecture
    assert bare.training["archive"] == "f"


def test_another_model_is_told_what_matched(tmp_path):
    torch.save(networks(names_of(tiny("qwen2")), hidden=4), tmp_path / "f.pth")
    with pytest.raises(
        InputError, match=r"another model than LlamaForCausalLM with 2 layers \(\d+"
    ):
        import_pickle(tmp_path / "f.pth", blocks=discover(tiny("llama")))


class Runs:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Foreign(nn.Linear):
    pass


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_before_it_runs(protocol, tmp_path):
    made = tmp_path / "made"
    nets = networks(["model.norm.weight"])
    nets["trap"] = Runs(made)
    torch.save(nets, tmp_path / "f.pth", pickle_protocol=protocol)
    # Even where somebody has told torch that the call is safe.
    with (
        torch.serialization.safe_globals([os.system]),
        pytest.raises(InputError, match=r"refused.* got '(posix|nt)\.system") as caught,
    ):
        import_pickle(tmp_path / "f.pth")
    assert not made.exists()
    assert "\n" not in str(caught.value)
    # The trap is a real one.
    pickle.loads(pickle.dumps(Runs(made)))
    assert made.exists()


def test_classes_that_are_not_needed_are_refused(tmp_path):
    for name, value in (("Foreign", Foreign(5, 1)), ("ReLU", nn.ReLU()), ("partial", _partial())):
        torch.save({"model.norm.weight": value}, tmp_path / "f.pth")
        with pytest.raises(InputError, match=rf"refused.*{name}"):
            read_pickle(tmp_path / "f.pth")


def _partial():
    import functools

    return functools.partial(print, "ran")


def test_a_second_pickle_cannot_hide(tmp_path):
    torch.save(networks(["model.norm.weight"]), tmp_path / "f.pth")
    with zipfile.ZipFile(tmp_path / "f.pth", "a") as archive:
        archive.writestr("f/other.pkl", pickle.dumps(Runs(tmp_path / "made"), 2))
    with pytest.raises(InputError, match=r"not a file that torch\.save wrote"):
        read_pickle(tmp_path / "f.pth")


def test_what_is_no_fine_tuner_is_one_line(tmp_path):
    good = networks(["model.norm.weight"], hidden=4)
    linear, tanh, last = nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)
    nan = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    nn.init.constant_(nan[0].weight, float("nan"))
    cases = [
        ([1, 2], "holds no fine-tuner, got 'list'"),
        ({}, "holds no fine-tuner"),
        ({3: linear}, "must be text"),
        ({"a": torch.zeros(3)}, "a is not Linear, Tanh, Linear"),
        ({"a": nn.Sequential(linear, tanh)}, "a is not Linear, Tanh, Linear"),
        ({"a": nn.Sequential(linear, tanh, nn.Linear(4, 2))}, "not a network of one output"),
        ({"a": nn.Sequential(nn.Linear(5, 4, bias=False), tanh, last)}, "not a network of one"),
        ({"a": nan}, "not finite"),
        ({**good, **networks(["b"], hidden=8)}, "different sizes"),
        (networks(["a"], inputs=4), "must read 5 features"),
    ]
    for value, text in cases:
        torch.save(value, tmp_path / "f.pth")
        with pytest.raises(InputError, match=text) as caught:
            import_pickle(tmp_path / "f.pth")
        assert "\n" not in str(caught.value)
    assert len(cases) == 10


def test_damaged_files_are_one_line(tmp_path):
    torch.save(networks(["model.norm.weight"], hidden=4), tmp_path / "f.pth")
    whole = (tmp_path / "f.pth").read_bytes()
    old = io.BytesIO()
    torch.save({}, old, _use_new_zipfile_serialization=False)
    for content in (b"", b"text", whole[:-200], whole[:300], old.getvalue(), pickle.dumps({})):
        (tmp_path / "f.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"f\.pth: (not a file|damaged)"):
            import_pickle(tmp_path / "f.pth")
    with pytest.raises(InputError, match="no such file"):
        import_pickle(tmp_path / "none.pth")
    with pytest.raises(InputError, match="is a folder"):
        import_pickle(tmp_path)
    with pytest.raises(InputError, match="batch_size: must be a whole number"):
        import_pickle(tmp_path / "f.pth", batch_size=0)


def test_the_normalisation_is_checked_and_kept():
    finetuner = FineTuner.initial(discover(tiny("llama")))
    assert finetuner.config.normalisation == "all"
    values = finetuner.config.to_dict()
    for name, value in (("normalisation", "author"), ("embed_rows", 0), ("embed_rows", True)):
        with pytest.raises(InputError, match=name):
            type(finetuner.config).from_dict({**values, name: value}, "config")
    del values["normalisation"], values["embed_rows"]
    assert type(finetuner.config).from_dict(values, "config").normalisation == "all"
