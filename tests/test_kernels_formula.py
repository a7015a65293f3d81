"""Formulas: maps of single elements, traced once and done by the kernels in one pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_methods import Quadratic, equal, weights
from test_methods_contracts import make

from zopeft.engine import Direction, traced
from zopeft.engine.vector import Each, Elementwise, Held, Restricted, Rowwise, Sum
from zopeft.kernels import BACKENDS
from zopeft.kernels.formula import OPERATIONS, Formula, Target
from zopeft.noise import Noise

SIZES = (1, 15, 16, 63, 513, 1000, 2**16 + 17)
TRACED = {
    *("mezo_momentum", "mezo_adam", "r_adazo", "hizoo", "zo_adamu", "conmezo", "ldsd", "zo_sign"),
    *("dizo", "sparse_mezo", "mezo_svrg"),
}
"""Methods whose every write of weights that is more than directions is a formula."""


def everything():
    """A formula that has every operation, and reads each kind of input."""
    nodes = [("weight",), ("buffer", 0), ("buffer", 1), ("noise", 0), ("noise", 1)]
    nodes += [("constant", 0), ("constant", 1)]
    nodes += [("add", 0, 3), ("sub", 7, 1), ("mul", 8, 5), ("abs", 2), ("sqrt", 10)]
    nodes += [("div", 9, 11), ("least", 12, 5), ("most", 13, 6), ("sign", 4), ("at_most", 1, 4)]
    nodes += [("add", 14, 15), ("add", 17, 16), ("mul", 18, 6), ("sub", 16, 15)]
    assert OPERATIONS.keys() <= {node[0] for node in nodes}
    return Formula(tuple(nodes), 19, (18, None))


def targets(dtype, last=torch.float32):
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, size in enumerate(SIZES):
        one, two, three = (torch.randn(size, generator=generator) for _ in range(3))
        found.append(Target(70 + number, one.to(dtype), (two, three.to(last))))
    return found


@pytest.mark.parametrize("family", ["gaussian", "binomial", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, len(SIZES)])
def test_compiled_formulas_have_the_bits_of_plain_ones(family, dtype, rows):
    constants = torch.linspace(0.25, 2.0, 2 * rows).view(rows, 2).numpy()
    found = {}
    for backend in ("plain", "numba"):
        own = targets(dtype, torch.float32 if rows == 1 else torch.bfloat16)
        BACKENDS[backend](Noise(family)).map(everything(), own, constants, (5, 2**63 + 9), 11)
        found[backend] = own
    for one, two, start in zip(found["plain"], found["numba"], targets(dtype), strict=True):
        assert torch.equal(one.weight.view(torch.uint8), two.weight.view(torch.uint8))
        assert torch.equal(one.buffers[0], two.buffers[0])
        assert torch.equal(one.buffers[1], two.buffers[1])
        assert not torch.equal(one.weight, start.weight)
        assert not torch.equal(one.buffers[0], start.buffers[0])


def test_every_operation_is_that_of_ieee():
    x = torch.tensor([-2.0, -0.0, 3.5, torch.nan, 0.7, 2.0])
    y = torch.tensor([0.3, 1.5, 3.5, 1.0, -0.7, torch.nan])
    for name, function in OPERATIONS.items():
        operands = (x.abs(),) if name == "sqrt" else (x,)
        binary = name not in ("sqrt", "abs", "sign")
        expected = function(*operands, y) if binary else function(*operands)
        places = (0, 1) if binary else (0,)
        formula = Formula((("weight",), ("buffer", 0), (name, *places)), 2, (None,))
        given = Target(3, operands[0].clone(), (y.clone(),))
        BACKENDS["numba"](Noise("gaussian")).map(formula, [given], torch.zeros(1, 0).numpy(), (), 1)
        torch.testing.assert_close(given.weight, expected, rtol=0, atol=0, equal_nan=True)


def near(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("carrier", ["flat", "modules"])
@pytest.mark.parametrize("name", sorted(TRACED))
def test_a_traced_step_is_the_step_on_tensors(name, carrier, monkeypatch):
    """But for last bits: tensors may take a product and a sum in one rounding."""
    found, made, tracing = {}, [], traced.traced

    def watched(*arguments):
        made.append(tracing(*arguments))
        return made[-1]

    monkeypatch.setattr("zopeft.engine.maps.traced", watched)
    for formulas in (True, False):
        model = Quadratic()
        method = make(
            name, model, carrier=carrier, **({} if name == "mezo_svrg" else {"weight_decay": 0.1})
        )
        method.engine.kernels.formulas = formulas
        losses = itertools.cycle((2.0, 2.3, 1.9, 2.2, 2.1, 1.8, 2.4))
        for _ in range(4):
            method.step(lambda losses=losses: torch.tensor(next(losses)))
        state = [t for v in method.kept.state_dict().values() if isinstance(v, list) for t in v]
        tensors = [t for t in state if isinstance(t, torch.Tensor)]
        found[formulas] = weights(model), tensors, len(made)
    assert not equal(found[True][0], weights(Quadratic()))
    near(found[True][0], found[False][0])
    near(found[True][1], found[False][1])
    # Each write of each step was traced, and none of those on tensors.
    assert found[True][2] == found[False][2] > 0 and None not in made


def test_what_is_not_of_single_elements_is_not_traced():
    method = make("mezo_momentum", Quadratic())
    elements, state = method.engine.elements, method.kept["momentum"]
    u, held = Direction(3), Held(state)

    def of(function, *vectors):
        return traced.traced(elements, 0, function, vectors, [state], 1.0)

    def moved(_, weight, z, m):
        return weight.add_(z), m.mul_(0.5)

    plain = [u, held, Sum(((2.0, u), (1.0, held))), Each([1.0] * 9), Restricted(u, frozenset({0}))]
    plain.append(Elementwise(lambda weight, z: z.mul_(weight.abs() <= 1.0), (u,)))
    assert all(of(moved, vector) is not None for vector in plain)
    assert of(moved, Rowwise(lambda _, numbers: numbers - numbers.mean(1), u)) is None
    bad = [
        lambda _, weight, z, m: (weight.add_(z.sum()), m),
        lambda _, weight, z, m: (weight.add_(z) if z.norm() > 0 else weight, m),
        lambda _, weight, z, m: (torch.where(z > 0, weight, z), m),
        lambda _, weight, z, m: (weight.view(-1), m),
        lambda _, weight, z, m: (weight.add_(torch.ones(3)), m),
        lambda _, weight, z, m: (weight,),
        lambda _, weight, z, m: (weight, None),
    ]
    assert [of(function, u) for function in bad] == [None] * len(bad)


def test_values_are_those_before_the_map_and_changes_are_in_place():
    """A vector of state and the state itself are one buffer, read before it is written."""
    method = make("mezo_momentum", Quadratic(), carrier="modules")
    engine, state = method.engine, method.kept["momentum"]
    for each in (state[index] for index in range(len(method.blocks))):
        each.fill_(2.0)
    before = weights(method.blocks.model)

    def moved(_, weight, old, m):
        m.mul_(3.0)
        return weight.add_(old, alpha=2.0).sub_(m), m

    engine.map(moved, [Held(state)], [state], 7, 0.5, (), True)
    for block, start, m in zip(method.blocks, before, state, strict=True):
        assert torch.equal(block.data, start * 0.5 + 4.0 - 6.0)
        assert (m == 6.0).all()


def test_weights_under_patterns_of_signs_are_those_of_plain():
    generator = torch.Generator().manual_seed(0)
    weight, u, r, s = (
        torch.randn(n, generator=generator) for n in ((9, 33), (9, 33), (3, 9), (3, 33))
    )
    rows, columns = r.sign(), s.sign()
    found = []
    for backend in ("plain", "numba"):
        shown = BACKENDS[backend](Noise("gaussian")).flips(weight, u, rows, columns, 0.3)
        found.append([each.clone() for each in shown])
    assert len(found[0]) == 3 and not torch.equal(found[0][0], found[0][1])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
