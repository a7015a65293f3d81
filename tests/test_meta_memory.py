"""Meta-training makes no copy of a gradient or of a weight."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zopeft
from zopeft.engine import Engine, Rows, Subspace
from zopeft.meta.gradients import Descent, Projections
from zopeft.meta.leading import LeadingDirections
from zopeft.meta.start_state import StartState
from zopeft.meta.statistics import BlockStatistics

SIZE = 2048
ALLOWED = 2**23
"""Bytes: half of the gradient in fp32, a fourth of a copy in fp64."""


class Largest(TorchDispatchMode):
    """Notes the largest memory that an operation has made, in bytes."""

    def __init__(self):
        super().__init__()
        self.bytes = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tensors(result):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in given:
                self.bytes = max(self.bytes, memory.nbytes())
        return result


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def taker(name, blocks):
    """What takes a gradient, ready to take one."""
    basis = torch.linalg.qr(torch.randn(SIZE, 4))[0]
    shapes = {"subspace": Subspace(basis, basis, 0.1), "rows": Rows(torch.rand(SIZE))}
    kind, _, shape = name.partition(", ")
    if kind in ("gradient", "curvature"):
        statistics = BlockStatistics(blocks, 5, {0: shapes[shape]} if shape else None)
        statistics.begin_gradient(0)
        return getattr(statistics, f"take_{kind}")
    if kind == "descent":
        descent = Descent(blocks, 1e-2)
        descent.begin(1.0, 7)
        return descent
    if kind == "projection":
        return Projections(Engine(blocks), 3)
    return LeadingDirections(blocks, [0], 4, 0).take


TAKERS = ["gradient", "gradient, subspace", "gradient, rows", "curvature", "curvature, subspace"]
TAKERS += ["curvature, rows", "descent", "projection", "leading"]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TAKERS)
def test_no_taker_copies_a_gradient(name, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr("zopeft.kernels.choice._numba_works", lambda: False)
    torch.manual_seed(0)
    layer = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=dtype)
    take = taker(name, zopeft.discover(layer))
    gradient = torch.randn(SIZE, SIZE).to(dtype)
    largest = Largest()
    with torch.no_grad(), largest:
        take(layer.weight, [0], gradient)
    assert largest.operations > 0
    assert largest.bytes <= ALLOWED


def test_the_start_is_kept_and_restored_in_pieces(tmp_path):
    layer = torch.nn.Linear(SIZE, SIZE)
    before = [p.detach().clone() for p in layer.parameters()]
    largest = Largest()
    with torch.no_grad(), largest:
        start = StartState(zopeft.discover(layer), tmp_path)
        for parameter in layer.parameters():
            parameter.fill_(7.0)
        start.restore()
        start.close()
    assert largest.operations > 0 and largest.bytes <= ALLOWED
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    assert not list(tmp_path.iterdir())


def test_the_probe_sees_a_copy():
    gradient, largest = torch.randn(SIZE, SIZE), Largest()
    with largest:
        gradient.double().square().sum()
    assert largest.bytes == 8 * gradient.numel() > ALLOWED


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_of_a_weight_move_as_the_whole(dtype, monkeypatch):
    gradient, moved = torch.randn(40, 50).to(dtype), []
    for chunk in (1 << 18, 96):
        monkeypatch.setattr("zopeft.meta.gradients.CHUNK", chunk)
        torch.manual_seed(0)
        model = torch.nn.Linear(50, 40, bias=False).to(dtype)
        blocks = zopeft.discover(model)
        descent = Descent(blocks, lr=0.1)
        descent.begin(0.5, 7)
        descent(model.weight, [0], gradient)
        moved.append(model.weight.detach().clone())
    assert torch.equal(*moved)
