"""The threads of compiled kernels: PyTorch's own, a pool of our own, or one; the same bits."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

np = pytest.importorskip("numpy")
pytest.importorskip("numba")

from zopeft.kernels import team, threads  # noqa: E402
from zopeft.kernels.numba_backend import NumbaKernels  # noqa: E402
from zopeft.kernels.numba_cache import Keeping  # noqa: E402
from zopeft.kernels.numba_kernels import _spreading  # noqa: E402
from zopeft.noise import Noise  # noqa: E402

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


def meet(begin, end, here, seen, turns):
    """Says that a part has begun, and waits some time for the other part to say so."""
    here[begin] = 1
    for _ in range(turns):
        seen[begin] = here[1 - begin]
        if seen[begin] == 1:
            break


@pytest.mark.skipif(not team.entry(), reason="PyTorch has other threads here")
def test_parts_are_for_all_threads_of_the_team(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    kernel = Keeping(_spreading).compiled("i8[::1], i8[::1], i8")(meet)
    bounds, turns = np.array([0, 1, 2]), 1 << 34
    here, seen = np.zeros(2, np.int64), np.zeros(2, np.int64)
    kernel(bounds, team.entry(), 2, here, seen, turns)
    assert seen.tolist() == [1, 1]
    here[:] = seen[:] = 0
    kernel(bounds, 0, 1, here, seen, 1000)
    assert seen.tolist() == [0, 1]


def fail(begin, end, sizes):
    np.empty(sizes[begin])


def test_a_kernel_that_breaks_off_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    kernel = Keeping(_spreading).compiled("i8[::1]")(fail)
    kernel(np.array([0, 1, 2]), team.entry(), 2, np.array([3, 3]))
    with pytest.raises(MemoryError, match="a kernel broke off"):
        kernel(np.array([0, 1, 2]), team.entry(), 2, np.array([3, 1 << 60]))


def test_several_threads_of_python_may_call_at_once():
    expected = updated()
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(updated) for _ in range(6)]
        assert all(alike(expected, each.result()) for each in found)


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
