"""Every control of every kind of fine-tuner: the same configuration, knowing less, and usable."""

import dataclasses
import json

import pytest
import torch
from test_finetuner_legacy import names_of, networks
from torch import nn

import zopeft
from zopeft.finetuner import STATE_FEATURES, FineTuner
from zopeft.finetuner.digest import digest_of
from zopeft.finetuner.legacy import import_pickle

KINDS = ("scales", "layer", "role", "plain budget", "subspace", "rows", "state", "imported")
CONTROLS = {
    "shuffled": lambda one, seed: one.shuffled(seed),
    "random": lambda one, seed: one.with_random_bases(seed),
    "untrained": lambda one, seed: one.untrained(seed),
}
VOCABULARY, WIDTH = 11, 6


class Tiny(nn.Module):
    """Tokens to a loss, with names and roles of a Llama; no transformers needed."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Module() for _ in range(2))
        for layer in self.layers:
            layer.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
            layer.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))

    def loss(self):
        x = self.embed_tokens(torch.arange(VOCABULARY))
        for layer in self.layers:
            x = x + torch.tanh(layer.q_proj(x)) * torch.sigmoid(layer.k_proj(x))
        return x.square().mean()


def learned(kind, model, seed, tmp_path):
    """A fine-tuner of a kind, with every number that can be learned away from its start."""
    blocks = zopeft.discover(model)
    if kind == "imported":
        file = tmp_path / f"f{seed}.pth"
        torch.save(networks(names_of(model), seed=seed), file)
        return import_pickle(file, "owner/base", batch_size=2)
    options = {
        "scales": {},
        "layer": {"sharing": "layer"},
        "role": {"sharing": "role"},
        "plain budget": {"normalise": False, "hidden": 8},
        "subspace": {"capacity": "subspace", "rank": 2, "mix": 0.2},
        "rows": {"rows": "frequency", "power": 0.7},
        "state": {"output": "bounded", "features": STATE_FEATURES},
    }[kind]
    made = FineTuner.initial(blocks, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for tensor in made.nets.state_dict().values():
            tensor += 0.3 * torch.rand(tensor.shape, generator=generator)
    if kind == "subspace":
        match = made.match(blocks)
        bases = {}
        for index, block in enumerate(blocks):
            sides = (torch.randn(size, 2, generator=generator) for size in block.shape)
            bases[index] = tuple(torch.linalg.qr(side)[0] for side in sides)
        made.set_bases(match, bases)
    made.config.training = {"statistics": {b.name: {"signal": 1, "energy": 2} for b in blocks}}
    return made


def step_of(finetuner, model):
    """The record of a step with a fine-tuner, and the shapes of its directions."""
    counts = torch.arange(VOCABULARY)
    method = zopeft.ZOFineTuner(
        zopeft.discover(model), finetuner, token_counts=counts, lr=1e-3, eps=1e-3
    )
    method.step(model.loss)
    return method.last_record, method.engine.shapes


@pytest.mark.parametrize(
    ("kind", "control"),
    # Random subspaces are a control of those that hold one; the bench refuses the others.
    [(kind, one) for kind in KINDS for one in CONTROLS if one != "random" or kind == "subspace"],
)
def test_a_control_is_the_twin_of_its_fine_tuner(kind, control, tmp_path):
    model = Tiny()
    trained = learned(kind, model, 1, tmp_path)
    before = digest_of(trained)
    found = CONTROLS[control](trained, 7)
    assert digest_of(trained) == before != digest_of(found)

    # The same configuration: only what says where it comes from, and the order of rows, differs.
    for one in dataclasses.fields(found.config):
        if one.name not in ("training", "rows_order"):
            assert getattr(found.config, one.name) == getattr(trained.config, one.name), one.name
    assert type(found.nets) is type(trained.nets)
    assert found.config.training["control"].startswith(control)
    assert sorted(found.bases) == sorted(trained.bases)
    shapes = {name: tensor.shape for name, tensor in trained.nets.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.nets.state_dict().items()} == shapes

    # It is saved and loaded as any.
    loaded = FineTuner.from_pretrained(found.save_pretrained(tmp_path / "control"))
    assert digest_of(loaded) == digest_of(found)

    # It makes steps, of its own.
    (mine, shaped), (own, own_shaped) = step_of(found, Tiny()), step_of(trained, Tiny())
    assert torch.tensor(mine.scales).isfinite().all() and not mine.skipped
    assert {i: type(s) for i, s in shaped.items()} == {i: type(s) for i, s in own_shaped.items()}
    assert len(shaped) == {"subspace": 5, "rows": 1}.get(kind, 0)
    assert mine.losses != own.losses
    again = step_of(CONTROLS[control](trained, 7), Tiny())[0]
    assert mine.losses == again.losses and mine.scales.tolist() == again.scales.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_twin_knows_nothing_that_was_learned(kind, tmp_path):
    model = Tiny()
    one, other = (learned(kind, model, seed, tmp_path) for seed in (1, 2))
    assert digest_of(one) != digest_of(other)
    twins = [digest_of(each.untrained(5)) for each in (one, other)]
    assert twins[0] == twins[1] != digest_of(one.untrained(6)) if kind != "state" else True
    untrained = one.untrained(5)
    match = untrained.match(zopeft.discover(model))
    assert untrained.signal_share(match, torch.ones(len(match.how))) is None
    if kind == "state":
        # The start of its training: no scale moves, and none differs from another.
        assert step_of(untrained, Tiny())[0].scales.tolist() == [1.0] * 5
    assert "statistics" not in json.dumps(untrained.config.to_dict())


def test_the_untrained_twin_starts_as_the_fine_tuner_itself_did(tmp_path):
    blocks = zopeft.discover(Tiny())
    trained = learned("scales", Tiny(), 1, tmp_path)
    start = FineTuner.initial(blocks, seed=3)
    assert digest_of(trained.untrained(3)) == digest_of(start)
