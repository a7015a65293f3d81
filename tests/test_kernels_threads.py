"""The threads of compiled kernels: PyTorch's own, a pool of our own, or one; the same bits."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch

pytest.importorskip("numba")

from zopeft.kernels import team, threads
from zopeft.kernels.numba_backend import NumbaKernels
from zopeft.noise import Noise

COUNT = 3 * threads.ALONE + 1001


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def updated(dtype=torch.bfloat16):
    weight = torch.linspace(-2, 2, COUNT).to(dtype)
    before = weight.clone()
    statistics = NumbaKernels(Noise()).update(5, 7, weight, 1e-3, 0.999, None)
    assert not torch.equal(before, weight)
    return [weight, *statistics]


def alike(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_ways_give_the_same_bits(dtype, monkeypatch):
    by_team = updated(dtype)
    monkeypatch.setattr(threads, "entry", lambda: 0)
    assert alike(by_team, updated(dtype))
    torch.set_num_threads(1)
    assert alike(by_team, updated(dtype))
    torch.set_num_threads(5)
    assert alike(by_team, updated(dtype))


@pytest.mark.skipif(not team.entry(), reason="PyTorch has other threads here")
def test_parts_are_for_all_threads_of_the_team(monkeypatch):
    """A part that waits for another one would wait forever on one thread."""
    asked = []
    monkeypatch.setattr(threads, "entry", lambda: asked.append(1) or team.entry())
    updated()
    assert asked


def test_parts_cover_a_table_and_are_looked_up_again():
    table = threads.runs.whole(7, 0, COUNT)
    bounds = threads._bounds(table, 2)
    assert bounds[0] == 0 and bounds[-1] == len(table) and (bounds[1:] > bounds[:-1]).all()
    assert len(bounds) > 2 and threads._bounds(table, 2) is bounds
    assert len(threads._bounds(table, 1)) == 2
    other = threads.runs.whole(7, 0, threads.ALONE)
    assert threads._bounds(other, 2).tolist() == [0, len(other)]


def test_a_table_that_is_gone_is_not_taken_for_another_at_its_place():
    for count in range(2, 40):
        table = threads.runs.cut([(0, 0, count * threads.ALONE, 0, 7, 0)])
        assert threads._bounds(table, 2)[-1] == len(table)
    assert len(threads._known) <= threads.KNOWN


def in_a_fork(queue, weight):
    """PyTorch's own operations on several threads wait forever there."""
    statistics = NumbaKernels(Noise()).update(5, 7, weight, 1e-3, 0.999, None)
    queue.put((team.entry(), [each.item() for each in statistics]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_no_team_and_waits_for_none():
    here = updated()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_fork, args=(queue, torch.linspace(-2, 2, COUNT).bfloat16()))
    child.start()
    found, statistics = queue.get(timeout=120)
    child.join(120)
    assert found == 0 and child.exitcode == 0
    assert statistics == [each.item() for each in here[1:]]
