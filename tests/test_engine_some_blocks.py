"""Directions of some blocks say nothing of the others: later ones of all blocks are shown whole."""

from __future__ import annotations

import pytest
import torch
from test_methods_selection import BATCH, tiny

import zopeft
from zopeft.engine import Direction, Engine
from zopeft.engine.carrier import UnstackableError
from zopeft.methods import METHODS
from zopeft.optim.executor import losses_of
from zopeft.probing.stacking import Stacking

STEP = 1e-2
DTYPES = [torch.float32, torch.bfloat16]


def method_of(model, name="mezo", **options):
    options = {"lr": 1e-3, "seed": 1, "carrier": "modules", **options}
    return METHODS[name](zopeft.discover(model), **options)


def residents(method):
    (carrier,) = method.engine.carriers
    return carrier._residents.modules


@torch.no_grad()
def seen(method, closure, direction):
    """The losses on both sides along a direction, as the first step sees them, which watches."""
    method.engine.reads.begin()
    found, _ = losses_of(method.executor, [(direction, STEP), (direction, -STEP)], closure)
    return found.tolist()


def halves(count):
    """Directions of the even blocks, and of the odd ones."""
    return [Direction(3 + odd, indices=frozenset(range(odd, count, 2))) for odd in (0, 1)]


@pytest.mark.parametrize("later", ["separate", "stacked"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_blocks_are_shown_after_some_were(dtype, later):
    whole = Direction(7)
    losses = []
    for first in (False, True):
        model = tiny().to(dtype)
        method = method_of(model)
        method.engine.adopt()
        closure = zopeft.BatchLoss(model, BATCH)
        method.probing.probes = "separate"
        parts = halves(len(method.blocks)) if first else []
        alone = [seen(method, closure, part) for part in parts]
        assert all(ahead != behind for ahead, behind in alone)
        assert not residents(method)
        method.probing.probes = later
        losses.append(seen(method, closure, whole))
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


@pytest.mark.parametrize("probes", ["separate", "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_some_layers_leave_the_other_modules_as_they_are(dtype, probes):
    model = tiny().to(dtype)
    method = method_of(model, "lezo", probes=probes)
    start = [block.parameter.detach().clone() for block in method.blocks]
    for _ in range(4):
        method.step(zopeft.BatchLoss(model, BATCH))
        assert not residents(method)
    moved = (not torch.equal(b.parameter, s) for b, s in zip(method.blocks, start, strict=True))
    assert any(moved)


def test_what_is_shown_for_the_whole_of_a_probe_is_not_stacked():
    """All copies of the batch would see the first probe."""
    model = tiny()
    engine = Engine(zopeft.discover(model), "gaussian", "modules")
    (carrier,) = engine.carriers
    carrier._residents.modules.add(next(iter(carrier._swaps.places)))
    direction = Direction(1)
    probes = [(direction, STEP), (direction, -STEP)]
    refused = pytest.raises(UnstackableError, match="not all where its layers are")
    with refused, torch.no_grad(), Stacking(engine).shown(probes):
        model(**{name: value.repeat(2, 1) for name, value in BATCH.items()})
