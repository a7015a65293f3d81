"""Limits at which a method is another one, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from field import extras
from test_methods import equal, weights
from test_methods_contracts import Quadratic

import zopeft
from zopeft.engine import Direction
from zopeft.methods import METHODS

DTYPES = [torch.float32, torch.bfloat16]
LOW_RANK = {"noise": "low_rank", "rank": 2}
FZOO = {"directions": 3, "sides": "one", "normalise": True}
LIMITS = {
    "conmezo at a right angle": ("conmezo", {"theta": math.pi / 2}, {}),
    "lozo at nu 1 is low_rank": ("lozo", {"nu": 1, "r": 2}, LOW_RANK),
    "lezo with all layers": ("lezo", {"skip": 0.0}, {}),
    "hizoo with s 0": ("hizoo", {"smooth": 0.0}, {}),
    "hizoo with s 0, the old H": ("hizoo", {"smooth": 0.0, "update": "old"}, {}),
    "hizoo with s 0, a block": ("hizoo", {"smooth": 0.0, "per": "block"}, {}),
    "grzo with one group": ("grzo", {"groups": 1}, {}),
    "momentum 0, a mean": ("mezo_momentum", {"beta": 0.0}, {}),
    "momentum 0, a sum": ("mezo_momentum", {"beta": 0.0, "convention": "heavy_ball"}, {}),
    "momentum 0, directions": ("mezo_momentum", {"beta": 0.0, "directions": 3}, {"directions": 3}),
    "fzoo is a normalised mezo": ("fzoo", {"queries": 3}, FZOO),
    "dizo before it rescales": ("dizo", {"every": 100}, {}),
    "svrg with an anchor a step": ("mezo_svrg", {"every": 1}, {}),
    "a mask of nothing": ("sparse_mezo", {"sparsity": 0.0}, {}),
    "a mask of everything": ("sensitive", {}, {}),
    "scales of one": ("zo_finetuner", {}, {}),
    "layers that are all": ("mezo", {"layer_count": 7, "layer_rest": True}, {}),
}


def path(name, dtype, carrier, options, steps=4):
    """The weights after each step, which have moved."""
    model = Quadratic().to(dtype)
    blocks, found = zopeft.discover(model), [weights(model)]
    given = extras(name, blocks)
    if name == "zo_finetuner":
        given["finetuner"].set_scales(given["finetuner"].match(blocks), torch.ones(len(blocks)))
    if name == "sensitive":
        given["mask"] = zopeft.Mask({b.name: torch.arange(b.numel) for b in blocks})
    common = {"lr": 1e-3, "eps": 1e-2, "seed": 3, "carrier": carrier, "weight_decay": 0.1}
    if not METHODS[name].decays:
        del common["weight_decay"]
    method = METHODS[name](blocks, **{**common, **given, **options})
    for _ in range(steps):
        method.step(model.loss)
        found.append(weights(model))
        assert not equal(found[-1], found[-2])
    assert method.skipped == 0
    return found


def test_all_of_them_are_there():
    assert len(LIMITS) == 17 and len({name for name, _, _ in LIMITS.values()}) == 13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("limit", LIMITS)
def test_it_is_mezo(limit, carrier, dtype):
    name, options, same = LIMITS[limit]
    if name == "mezo_svrg":
        # It takes no weight decay.
        same = {**same, "weight_decay": 0.0}
    own = path(name, dtype, carrier, options)
    other = path("mezo", dtype, carrier, same)
    for one, two in zip(own, other, strict=True):
        assert equal(one, two)


@pytest.mark.parametrize("carrier", ["flat", "modules"])
def test_the_conservative_step_is_mezos_where_that_falls(carrier):
    assert equal(
        path("conservative", torch.float32, carrier, {})[-1],
        path("mezo", torch.float32, carrier, {})[-1],
    )


@pytest.mark.parametrize("limit", ["conmezo", "hizoo", "mezo_momentum", "lozo"])
def test_off_the_limit_it_is_another(limit):
    """What the limit sets does matter."""
    off = {
        "conmezo": {"theta": 1.2},
        "hizoo": {"smooth": 1e-2},
        "mezo_momentum": {"beta": 0.5},
        "lozo": {"nu": 4, "r": 2},
    }
    own = path(limit, torch.float32, "flat", off[limit])
    other = path("mezo", torch.float32, "flat", LOW_RANK if limit == "lozo" else {})
    assert not equal(own[-1], other[-1])


def test_lozo_m_without_momentum_is_lozo_but_for_rounding():
    own = path("lozo_m", torch.float32, "flat", {"beta": 0.0, "nu": 3})
    other = path("lozo", torch.float32, "flat", {"nu": 3})
    for one, two in zip(own[-1], other[-1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_pool_of_two_is_mezo_along_their_difference():
    """The guided step is even in its direction, so what is chosen changes nothing."""
    model = Quadratic()
    method = METHODS["mezo_guided"](zopeft.discover(model), lr=1e-3, eps=1e-2, seed=3, pool=2)
    start, pool = weights(model), [Direction(5), Direction(6)]
    method.step(model.loss)
    assert not equal(weights(model), start)
    one, other = (method.choose(pool, losses) for losses in ([1.0, 2.0], [2.0, 1.0]))
    for index, block in enumerate(method.blocks):
        (part,) = method.engine.elements.parts(index, block.data)
        first, second = one.values(part), other.values(part)
        assert torch.equal(first, -second) and first.any()
        assert torch.equal(first, pool[0].values(part) - pool[1].values(part))
