"""An engine in float64 whose draws are given: what a method does, without kernels."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

import zopeft
from zopeft.engine.elements import Elements, Part, as_matrix
from zopeft.engine.reads import Reads
from zopeft.methods import METHODS
from zopeft.optim.executor import InProcess


class OraclePart(Part):
    """A part whose numbers are float64."""

    def weight(self):
        return self.stored.clone()

    def zeros(self):
        return torch.zeros_like(self.stored)


class OracleForms:
    """Shaped blocks whose drawn numbers are given.

    Args:
        shapes: Index to shape.
        blocks: The blocks.
        drawn: Seed to left and right numbers.
        kept: What the shapes keep, by seed; any seed where there is only one.
    """

    def __init__(self, shapes, blocks, drawn, kept):
        self.shapes, self.blocks, self._drawn, self._kept = shapes, blocks, drawn, kept

    def __contains__(self, index):
        return index in self.shapes

    def kept_of(self, index, seed):
        return self._kept[seed] if seed in self._kept else self._kept[None]

    def drawn(self, index, seed):
        return self._drawn[seed][0].reshape(-1)

    def pair(self, index, direction):
        rows, columns = self.blocks[index].shape
        left, right = self._drawn[direction.seed]
        kept = self.kept_of(index, direction.kept)
        return self.shapes[index].join(left.reshape(-1), right.reshape(-1), rows, columns, kept)


class OracleElements(Elements):
    """Elements whose noise is given."""

    def __init__(self, blocks, forms, draws):
        super().__init__(blocks, None, forms)
        self.draws = draws

    def some(self, index, matrix, rows):
        yield OraclePart(self, index, rows, matrix[rows]), rows

    def noise(self, direction, part):
        if part.index in self.forms:
            left, right = self.forms.pair(part.index, direction)
            return left[part.rows].double() @ right.double()
        return part.of(self.draws[direction.seed].reshape(self.blocks[part.index].shape)).clone()


class OracleEngine:
    """Probes and writes weights in float64.

    Args:
        blocks: One block.
        theta: Its weights, float64.
        draws: Seed to noise.
        forms: Shapes, if any.
    """

    def __init__(self, blocks, theta, draws, forms=None):
        self.blocks, self.theta, self.device = blocks, theta, torch.device("cpu")
        self.forms = forms or OracleForms({}, blocks, {}, {})
        self.elements = OracleElements(blocks, self.forms, draws)
        self.shown, self.reads = theta, Reads(blocks)

    def adopt(self):
        pass

    def state_dict(self):
        return {}

    def weights(self, index):
        return self.theta

    def values(self, vector):
        if not vector.touches(0):
            return torch.zeros_like(self.theta)
        (part,) = self.elements.parts(0, self.theta)
        return vector.values(part).double().reshape(self.theta.shape)

    @contextmanager
    def perturbed(self, vector, step):
        self.shown = self.theta + step * self.values(vector)
        try:
            yield
        finally:
            self.shown = self.theta

    def run(self, probes, closure):
        losses = []
        for vector, step in probes:
            with self.perturbed(vector, step):
                losses.append(closure())
        return torch.stack(losses), len(losses)

    def update(self, directions, coefficients, decays):
        new = self.theta * float(decays[0])
        for direction, own in zip(directions, coefficients, strict=True):
            new = new + float(own[0]) * self.values(direction)
        self.theta.copy_(new)

    def map(self, function, vectors, buffers, seed, decays, alone=(), together=False):
        if not all(vector.touches(0) for vector in vectors):
            return
        (part,) = self.elements.parts(0, self.theta)
        weight = part.stored.clone() * float(decays[0])
        own = [part.of(buffer[0]).clone() for buffer in buffers]
        new, *kept = function(0, weight, *(v.values(part) for v in vectors), *own)
        for buffer, value in zip(buffers, kept, strict=True):
            as_matrix(buffer[0]).copy_(value)
        as_matrix(self.theta).copy_(new)

    def slope(self, vector, closure):
        here = closure()
        found = []
        for step in (1.0, -1.0):
            with self.perturbed(vector, step):
                found.append(closure())
        # On a quadratic a difference is the derivative, whatever its step.
        return here, (found[0] - found[1]) / 2.0

    def dot(self, first, second):
        return (self.values(first) * self.values(second)).sum().reshape(1)


def oracle(name, problem, draws, shape=(4,), forms=None, **options):
    """Returns a method of the registry over a quadratic, and its loss.

    Args:
        name: The method's name.
        problem: a, b and theta0 of ``L = sum(a t^2) / 2 + sum(b t)``, eps and lr.
        draws: Seed to noise.
        shape: Shape of the one block.
        forms: From shapes and blocks to `OracleForms`; None for no shapes.
        **options: The method's.
    """
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.zeros(shape))
    blocks = zopeft.discover(layer)
    options = {"lr": problem["lr"], "eps": problem["eps"], **options}
    method = METHODS[name](blocks, **options)
    theta = torch.tensor(problem["theta0"], dtype=torch.float64).reshape(shape)
    a, b = (torch.tensor(problem[key], dtype=torch.float64) for key in ("a", "b"))
    shapes = method.shapes(blocks)
    engine = OracleEngine(blocks, theta, draws, forms and forms(shapes, blocks))
    method.engine, method.probing.run = engine, engine.run
    method.executor = InProcess(engine, method.probing)
    for key in method.kept.declared:
        made = method.kept[key]
        if isinstance(made, list) and made and isinstance(made[0], torch.Tensor):
            made[:] = [each.double() for each in made]
        elif isinstance(made, dict):
            method.kept._values[key] = {i: t.double() for i, t in made.items()}

    def loss():
        t = engine.shown.reshape(-1)
        return (a * t * t).sum() / 2 + (b * t).sum()

    return method, loss
