"""Layers that a step is about: an option of every method, and what is left out costs nothing."""

from __future__ import annotations

import json

import pytest
import torch
from field import FIELD, extras
from peft import LoraConfig, get_peft_model
from test_methods import equal
from training_run import digest, tiny_model, trainer
from transformers import LlamaConfig, LlamaForCausalLM

import zopeft
from zopeft.errors import InputError
from zopeft.journal.codec import decode, encode
from zopeft.journal.header import header_of
from zopeft.methods import METHODS
from zopeft.optim.options import options_from
from zopeft.optim.selection import Selection
from zopeft.optim.state import Start
from zopeft.probing.dominant import dominant_layer
from zopeft.recipe.load import load_recipe

LAYERS = 3
IDS = (torch.arange(4 * 6).view(4, 6) * 5 + 3) % 23
BATCH = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
SMALL = {
    "zo_adamu": {"warmup": 0},
    "subzero_plus": {"queries": 2, "renew": 2},
    "zo_muon": {"queries": 2, "renew": 2, "vectors": 1.0},
    "zo_mopi": {"queries": 2, "beta": 0.5, "renew": 2, "vectors": 1.0},
    "fzoo": {"queries": 2},
    "loren": {"queries": 2},
    "dizo": {"every": 2, "rounds": 2},
    "lozo": {"nu": 2},
    "lozo_m": {"nu": 2},
    "subzero": {"renew": 2},
    "sparse_mezo": {"renew": 3, "sparsity": 0.25},
    "hizoo": {"smooth": 1e-3},
    "lezo": {"skip": 0.0},
    "mezo_svrg": {"inner": 0.5, "every": 4},
    "grzo": {"groups": 2},
    "agzo": {"renew": 2},
}


def tiny(layers=LAYERS, **sizes):
    torch.manual_seed(0)
    own = {
        "vocab_size": 23,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    config = LlamaConfig(**{**own, **sizes})
    return LlamaForCausalLM(config).eval()


def make(name, model, **options):
    blocks = zopeft.discover(model)
    options = {"lr": 1e-3, "eps": 1e-2, "seed": 1, **SMALL.get(name, {}), **options}
    options = {**extras(name, blocks), **options}
    return METHODS[name](blocks, **options)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def changed(method, before):
    """Indices of the blocks that are not what they were."""
    pairs = enumerate(zip(method.blocks, before, strict=True))
    return {n for n, (block, old) in pairs if not torch.equal(block.data, old)}


class Watching(zopeft.BatchLoss):
    """A closure that takes note of the blocks that a probe has moved."""

    def __init__(self, method, model, start):
        super().__init__(model, BATCH)
        self.method, self.start, self.moved = method, start, set()

    def __call__(self):
        self.moved |= changed(self.method, self.start)
        return super().__call__()

    def grouped(self, count, only):
        self.moved |= changed(self.method, self.start)
        return super().grouped(count, only)


@pytest.mark.parametrize("name", FIELD)
def test_a_step_shows_and_writes_the_layers_in_turn_and_is_replayed(name):
    options = {"layers": "cyclic", "layer_count": 2, "layer_steps": 2, "carrier": "flat"}
    options |= {"weight_decay": 0.1} if METHODS[name].decays else {}
    model, twin = tiny(), tiny()
    method, replayed = make(name, model, **options), make(name, twin, **options)
    record = None
    for number in range(6):
        before = [block.data.clone() for block in method.blocks]
        closure = Watching(method, model, before)
        method.step(closure)
        own = {n for n, b in enumerate(method.blocks) if b.layer in turn(number)}
        assert changed(method, before) == own
        # Dual numbers move nothing that can be seen.
        assert closure.moved == (set() if name == "forward_gradient" else own) or (
            name == "mezo_svrg" and closure.moved > own
        )
        record = decode(encode(method.last_record, record), record)
        replayed.replay(record)
        assert equal(weights(model), weights(twin))
    assert replayed.forward_passes == 0 and method.skipped == 0


def turn(number):
    first = number // 2 * 2 % LAYERS
    return {first, (first + 1) % LAYERS}


@pytest.mark.parametrize(("kind", "carrier"), [("last", "modules"), ("cyclic", "flat")])
@pytest.mark.parametrize("name", FIELD)
def test_all_layers_and_the_rest_are_the_method_itself(name, kind, carrier):
    runs = []
    for options in ({}, {"layers": kind, "layer_count": 5, "layer_rest": True}):
        model = tiny(2)
        method, start = make(name, model, carrier=carrier, **options), weights(model)
        for _ in range(3):
            method.step(zopeft.BatchLoss(model, BATCH))
        assert not equal(weights(model), start)
        runs.append(weights(model))
    assert equal(*runs)


@pytest.mark.parametrize("name", ["conmezo", "lozo_m", "hizoo", "dizo", "mezo_momentum", "loren"])
def test_a_run_goes_on_from_its_state(name, tmp_path):
    options = {"layers": "cyclic", "carrier": "modules"}
    model = tiny()
    method = make(name, model, **options)
    for _ in range(2):
        method.step(zopeft.BatchLoss(model, BATCH))
    torch.save((method.state_dict(), model.state_dict()), tmp_path / "state")
    state, values = torch.load(tmp_path / "state", weights_only=True)
    twin = tiny()
    twin.load_state_dict(values)
    resumed = make(name, twin, **options)
    resumed.load_state_dict(state)
    for own, its in ((method, model), (resumed, twin)):
        for _ in range(4):
            own.step(zopeft.BatchLoss(its, BATCH))
    assert equal(weights(model), weights(twin))
    assert not equal(list(values.values()), weights(model))


def test_momentum_of_what_is_left_out_stays_as_it_is():
    model = tiny()
    method = make("mezo_momentum", model, layers="cyclic")
    method.step(zopeft.BatchLoss(model, BATCH))
    layer = [block.layer for block in method.blocks]
    kept = method.kept["momentum"]
    first = {n: kept[n].clone() for n in range(len(layer)) if layer[n] == 0}
    assert all(bool(tensor.any()) for tensor in first.values())
    method.step(zopeft.BatchLoss(model, BATCH))
    assert all(torch.equal(kept[n], tensor) for n, tensor in first.items())


@pytest.mark.parametrize("name", ["mezo_adam", "dizo"])
def test_state_is_kept_of_the_last_layers_alone(name):
    model = tiny()
    method = make(name, model, layers="last", layer_count=1)
    for _ in range(3):
        method.step(zopeft.BatchLoss(model, BATCH))
    state = "start" if name == "dizo" else "second"
    own = {n for n, b in enumerate(method.blocks) if b.layer == LAYERS - 1}
    made = method.kept[state].made()
    assert {n for n, tensor in enumerate(made) if tensor is not None} == own
    sizes = sum(4 * method.blocks[n].numel for n in own) * len(method.kept.declared)
    options = {"layers": "last", "layer_count": 1}
    assert method.kept.bytes(type(method).chosen_on(method.blocks, options)) == sizes > 0


def test_layers_below_run_once():
    model = tiny()
    runs = []
    for number, layer in enumerate(model.model.layers):
        own = layer.mlp.forward
        layer.mlp.forward = lambda x, own=own, n=number: (runs.append(n), own(x))[1]
    blocks = zopeft.discover(model)
    method = METHODS["mezo"](blocks, lr=1e-3, layers="cyclic", probes="separate")
    for expected in ([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2], [0, 1, 2, 2]):
        runs.clear()
        method.step(lambda: model(**BATCH).loss)
        assert sorted(runs) == sorted(expected)


@pytest.mark.parametrize("carrier", ["flat", "modules"])
def test_sharing_layers_changes_no_bit(carrier):
    ends = []
    for shares in (True, False):
        model = tiny()
        method = make("mezo", model, layers="cyclic", carrier=carrier, probes="separate")
        if not shares:
            method.probing._sharing_of = lambda probes: None
        start = weights(model)
        for _ in range(4):
            method.step(zopeft.BatchLoss(model, BATCH))
        assert not equal(weights(model), start)
        ends.append(weights(model))
    assert equal(*ends)


def loud(layer):
    """A model from one of whose layers a single activation is far above all others."""
    model = tiny()
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[3] *= 500.0
    return model


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_dominant_layer_is_found_noted_and_kept(layer):
    model = loud(layer)
    method = make("mezo", model, layers="dominant")
    start = [block.data.clone() for block in method.blocks]
    records = []
    for _ in range(2):
        method.step(zopeft.BatchLoss(model, BATCH))
        records.append(decode(encode(method.last_record, None), None))
    assert method.selection.found == layer and method.forward_passes == 5
    assert {method.blocks[n].layer for n in changed(method, start)} == {layer}
    assert records[0].notes["layer"].tolist() == [layer] and not records[1].notes
    twin = loud(layer)
    replayed = make("mezo", twin, layers="dominant")
    replayed.replay(records[0])
    other = loud(layer)
    other.load_state_dict(twin.state_dict())
    resumed = make("mezo", other, layers="dominant")
    resumed.load_state_dict(replayed.state_dict())
    for each, its in ((replayed, twin), (resumed, other)):
        each.replay(records[1])
        assert equal(weights(model), weights(its))


def test_a_learning_rate_is_measured_where_the_steps_go():
    model = tiny()
    method = make("mezo", model, layers="last", lr="auto", carrier="flat")
    start = [block.data.clone() for block in method.blocks]
    closure = Watching(method, model, start)
    method.calibrate(closure)
    assert {method.blocks[n].layer for n in closure.moved} == {LAYERS - 1}


def test_adapters_have_layers_too():
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    blocks = zopeft.discover(model)
    method = METHODS["mezo"](blocks, lr=1e-2, layers="last", layer_count=2)
    start = [block.data.clone() for block in blocks]
    method.step(zopeft.BatchLoss(model, BATCH))
    assert {blocks[n].layer for n in changed(method, start)} == {1, 2}


def test_a_run_is_not_resumed_under_other_layers():
    old, new = (header_of(make("mezo", tiny(), layers=kind)) for kind in ("last", "cyclic"))
    assert json.loads(old.to_bytes())["options"]["layers"] == "last"
    with pytest.raises(InputError, match="layers 'cyclic' instead of 'last'"):
        old.check(new, "j.bin")


def test_what_is_wrong_is_told_in_a_line():
    with pytest.raises(InputError, match=r"MeZO layers: must be one of all, last, .* got 'first'"):
        make("mezo", tiny(), layers="first")
    with pytest.raises(InputError, match="layer_count: must be >= 1, got 0"):
        make("mezo", tiny(), layer_count=0)
    with pytest.raises(InputError, match="MeZO layers: the blocks are in no layer, got 'last'"):
        METHODS["mezo"](zopeft.discover(torch.nn.Linear(3, 3)), lr=1e-3, layers="last")
    plain = torch.nn.Linear(3, 3)
    with pytest.raises(InputError, match="no layer's output could be seen"):
        dominant_layer(plain, lambda: plain(torch.ones(1, 3)), [0])


def test_the_choice_goes_round():
    blocks = zopeft.discover(tiny())
    kind = METHODS["mezo"].Options
    for count, steps, expected in (
        (1, 1, [[0], [1], [2], [0]]),
        (2, 1, [[0, 1], [0, 2], [1, 2], [0, 1]]),
        (1, 3, [[0], [0], [0], [1]]),
    ):
        options = kind(layers="cyclic", layer_count=count, layer_steps=steps)
        selection = Selection(blocks, options, "x")
        found = [sorted({blocks[i].layer for i in selection.at(n)}) for n in range(4)]
        assert found == expected
    rest = Selection(blocks, kind(layers="last", layer_rest=True), "x").at(0)
    assert {blocks[i].layer for i in rest} == {None, LAYERS - 1}
    assert Selection(blocks, kind(), "x").at(7) is None
    assert any(isinstance(k, Start) for k in METHODS["dizo"].keeps(None).values())


def test_recipes_take_it():
    words = ["method.layers=cyclic", "method.layer_count=2", "method.layer_rest=true"]
    recipe = load_recipe("tune", overrides=[*words, "method.weight_decay=0.1"])
    assert recipe.method.options == {"layers": "cyclic", "layer_count": 2, "layer_rest": True}
    found = options_from(METHODS["mezo"], recipe.method)
    assert {key: found[key] for key in recipe.method.options} == recipe.method.options
    for words, told in (
        (["method.layers=fist"], "layers: must be one of all, last, cyclic, dominant, got 'fist'"),
        (["method.layer_cont=2"], r"unknown key \(method mezo\).*layer_count"),
        (["method.decay_to=start"], r"method\.decay_to: needs a method\.weight_decay above 0"),
    ):
        with pytest.raises(InputError, match=told):
            load_recipe("tune", overrides=words)


@pytest.mark.parametrize("kind", ["cyclic", "dominant"])
def test_a_trainer_takes_it_and_goes_on(tmp_path, kind):
    options = {"method_options": {"layers": kind, "decay_to": "start"}, "weight_decay": 10.0}
    whole = trainer(tiny_model(), tmp_path / "whole", max_steps=4, **options)
    whole.train()
    assert whole.method.own.layers == kind and whole.method.selection.at(0) is not None
    assert digest(whole.model) != digest(tiny_model())
    trainer(tiny_model(), tmp_path / "part", max_steps=2, **options).train()
    other = {**options, "method_options": {"layers": "last", "decay_to": "start"}}
    with pytest.raises(InputError, match=f"layers 'last' instead of '{kind}'"):
        changed = trainer(tiny_model(), tmp_path / "part", max_steps=4, **other)
        changed.train(resume_from_checkpoint=True)
    again = trainer(tiny_model(), tmp_path / "part", max_steps=4, **options)
    again.train(resume_from_checkpoint=True)
    assert digest(again.model) == digest(whole.model)
