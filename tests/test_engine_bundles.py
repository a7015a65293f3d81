"""Small blocks worked on as one row come out as they do one by one."""

from __future__ import annotations

import pytest
import torch
from test_engine import full, lora
from test_methods import equal, weights
from test_methods_contracts import make

import zopeft
from zopeft.engine import Engine
from zopeft.engine.direction import Direction
from zopeft.engine.vector import Each, Elementwise, Held, Rowwise, Sum

NAMES = ["mezo_adam", "hizoo", "zo_adamu", "ldsd", "sparse_mezo"]
"""Methods whose probes or writes are more than one direction."""


def trained(name, model, apart, **options):
    """Returns weights and state after some steps, and how many blocks were bundled."""
    taken = []
    method = make(name, model, carrier="flat", **options)
    # What has a formula needs no bundle.
    method.engine.kernels.formulas = False
    for carrier in method.engine.carriers:
        if apart:
            carrier.groups = []
        taken += [len(group.indices) for group in carrier.groups]
    ids = torch.arange(24).view(2, 12)
    for _ in range(3):
        method.step(lambda: model(input_ids=ids, labels=ids).loss)
    return weights(model), method.kept.state_dict(), sum(taken)


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("space", [full, lora])
@pytest.mark.parametrize("name", NAMES)
def test_methods_do_the_same_with_bundles_and_without(name, space, dtype):
    start = weights(space(dtype))
    together = trained(name, space(dtype), False, weight_decay=0.1)
    apart = trained(name, space(dtype), True, weight_decay=0.1)
    assert together[2] > 3 and apart[2] == 0
    assert not equal(start, together[0])
    same(together[0], apart[0])
    same(together[1], apart[1])


def test_a_bundle_tells_every_blocks_own_numbers():
    model = full()
    blocks = zopeft.discover(model)
    engine = Engine(blocks, carrier="flat")
    [group] = engine.carriers[0].groups
    assert any(block.numel % 128 for block in blocks), "no block leaves a gap"
    held = Held([torch.full(b.shape, float(n)) for n, b in enumerate(blocks)])
    scales = torch.linspace(0.5, 2.0, len(blocks))
    u = Direction(3, scales)
    each = Each([0.5 * n for n in range(len(blocks))])
    mixed = Elementwise(lambda w, z, e: z * e + w, (u, each))
    for vector in (held, u, each, mixed, Sum(((2.0, u), (1.0, held)))):
        assert group.takes([vector])
        bundle = group.bundle(engine.weights)
        rows = group.places(vector.values(bundle))
        for index, row in zip(group.indices, rows, strict=True):
            parts = engine.elements.parts(index, engine.weights(index))
            alone = torch.cat([vector.values(part).flatten() for part in parts])
            torch.testing.assert_close(row, alone, rtol=1e-6, atol=0)
        found = engine.dot(vector, u)
        engine.carriers[0].groups = []
        torch.testing.assert_close(found, engine.dot(vector, u), rtol=1e-6, atol=1e-6)
        engine.carriers[0].groups = [group]


def test_what_cannot_be_told_together_is_not():
    blocks = zopeft.discover(full())
    engine = Engine(blocks, carrier="flat")
    [group] = engine.carriers[0].groups
    u, some = Direction(3), group.indices[:2]
    assert not group.takes([u.only(some)])
    assert not group.takes([Sum(((1.0, u), (1.0, Held([]).only(some))))])
    assert not group.takes([Rowwise(lambda _, z: z, u)])
    assert group.takes([u.only(range(len(blocks)))])


def test_blocks_with_rates_of_their_own_are_written_one_by_one():
    model = full()
    method = make("mezo_adam", model, carrier="flat")
    method.param_groups[0]["lr"] = 0.0
    start = [block.parameter.detach().clone() for block in method.blocks]
    ids = torch.arange(24).view(2, 12)
    method.step(lambda: model(input_ids=ids, labels=ids).loss)
    pairs = zip(method.blocks, start, strict=True)
    assert [torch.equal(b.parameter, s) for b, s in pairs] == [True] + [False] * (len(start) - 1)
