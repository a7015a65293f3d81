"""The contracts of every method on what is trained: adapters, prefixes, scales, offloaded weights.

Each begins by asserting that what is trained has moved.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from accelerate import cpu_offload
from field import ENTRIES, extras
from test_engine_scales import load
from test_methods import equal
from test_methods_selection import BATCH, SMALL, tiny

import zopeft
from zopeft.blocks.offloaded import Offload
from zopeft.errors import InputError
from zopeft.journal.codec import decode, encode
from zopeft.methods import METHODS
from zopeft.models import attach

STEPS = 3
LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
ON_LORA = [name for name in ENTRIES if "adapter" in METHODS[name].spaces]
ON_SCALES = [name for name in ENTRIES if "scales" in METHODS[name].spaces]
ON_FULL = [name for name in ENTRIES if "full" in METHODS[name].spaces]
DUAL = "forward_gradient"
"""It has no probes, and dual numbers need the weights where they are."""


@functools.cache
def template(kind):
    if kind == "full":
        return tiny(2)
    options = LORA if kind == "lora" else {"num_virtual_tokens": 2}
    model = attach(tiny(2), kind, options, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in zopeft.discover(model).parameters():
        # Where B is 0, half of an adapter does not matter.
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def fresh(kind):
    return copy.deepcopy(template(kind))


def make(name, model, space=None, **options):
    blocks = zopeft.discover(model) if space is None else zopeft.discover(model, space=space)
    own = {**SMALL.get(name, {}), **extras(name, blocks)}
    return METHODS[name](blocks, **{"lr": 1e-3, "eps": 1e-2, "seed": 1, **own, **options})


def trained(method):
    return [block.data.clone() for block in method.blocks]


def frozen(model):
    return [p.detach().clone() for p in model.parameters() if not p.requires_grad]


def test_every_entry_is_somewhere():
    assert len(ENTRIES) >= 36 and len(ON_LORA) >= 34 and len(ON_SCALES) >= 30
    assert {*ON_LORA, *ON_SCALES, *ON_FULL} == set(ENTRIES)


@pytest.mark.parametrize("kind", ["lora", "prefix"])
@pytest.mark.parametrize("name", ON_LORA)
def test_an_adapter_moves_alone_and_is_replayed(name, kind):
    model, twin = fresh(kind), fresh(kind)
    method, replayed = make(name, model), make(name, twin)
    start, base, record = trained(method), frozen(model), None
    for _ in range(STEPS):
        before = trained(method)
        method.step(zopeft.BatchLoss(model, BATCH))
        assert not equal(trained(method), before)
        record = decode(encode(method.last_record, record), record)
        replayed.replay(record)
        assert equal(trained(method), trained(replayed))
    moved = [not torch.equal(a, b) for a, b in zip(trained(method), start, strict=True)]
    assert all(moved) and method.skipped == 0
    assert equal(frozen(model), base) and base
    assert replayed.forward_passes == 0


@pytest.mark.parametrize("name", ON_LORA)
def test_probes_in_one_forward_are_those_of_many(name):
    if name == DUAL:
        pytest.skip("it has no probes")
    losses = []
    for probes in ("separate", "stacked"):
        model = fresh("lora")
        method, rows = make(name, model, probes=probes), []
        start = trained(method)
        model.register_forward_pre_hook(
            lambda m, a, k, rows=rows: rows.append(len(k["input_ids"])), with_kwargs=True
        )
        method.step(zopeft.BatchLoss(model, BATCH))
        assert not equal(trained(method), start)
        losses.append(torch.tensor(method.last_record.all_losses(), dtype=torch.float64))
    # A plan that goes on from its own losses may go another way by their last bits.
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-6, atol=0)
    assert len(set(losses[0].tolist())) > 1 and max(rows) > (4 if name != "grzo" else 3)


@pytest.mark.parametrize("name", ON_FULL)
def test_offloaded_weights_go_as_resident_ones(name):
    ends = []
    for offloads in (False, True):
        model = fresh("full")
        if offloads:
            model = cpu_offload(model, torch.device("cpu"))
        # Groups of a batch share a forward where they can, and have other last bits then.
        method = make(name, model, carrier="auto" if offloads else "modules", probes="separate")
        offload = Offload(model)
        assert bool(offload) == offloads

        def held(method=method, offload=offload):
            return [offload.value(block).detach().clone() for block in method.blocks]

        start = held()
        if name == DUAL and offloads:
            with pytest.raises(InputError, match="slope: cannot be taken of offloaded weights"):
                method.step(zopeft.BatchLoss(model, BATCH))
            assert equal(held(), start)
            return
        for _ in range(2):
            method.step(zopeft.BatchLoss(model, BATCH))
        end = held()
        assert not equal(end, start)
        ends.append(end)
    assert equal(*ends)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tiny(1, hidden_size=64, intermediate_size=64).save_pretrained(path)
    return functools.partial(load, path, "nf4")


@pytest.mark.parametrize("name", ENTRIES)
def test_quantisation_scales_move_and_are_replayed_or_are_refused(name, quantised):
    model = quantised()
    if name not in ON_SCALES:
        with pytest.raises(InputError, match="cannot serve these weights, got 'scales'"):
            make(name, model, "scales")
        return
    method, twin = make(name, model, "scales", lr=1e-4), quantised()
    replayed = make(name, twin, "scales", lr=1e-4)
    start, codes, record = trained(method), [p.detach().clone() for p in model.parameters()], None
    for _ in range(2):
        method.step(zopeft.BatchLoss(model, BATCH))
        record = decode(encode(method.last_record, record), record)
        replayed.replay(record)
        assert equal(trained(method), trained(replayed))
    assert not equal(trained(method), start) and method.skipped == 0
    assert equal([p.detach() for p in model.parameters()], codes)
