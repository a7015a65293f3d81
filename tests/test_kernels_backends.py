"""Every backend gives the bits of the plain one: noise, probe, update; moments to fp64."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np
import pytest
import torch

from zopeft.errors import InputError
from zopeft.kernels import BACKENDS, choice
from zopeft.kernels.form import Form
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.kernels.runs import PIECE, Layout, cut, shares, whole
from zopeft.noise import FAMILIES, Noise

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COUNTS = [1, 63, 1000, 2**20 + 1]
SEED = 2**63 + 12345
ELSEWHERE = {"triton": "works on CUDA tensors, see test_kernels_triton.py and test_gpu.py"}
FAST = sorted(set(BACKENDS) - {"plain"} - set(ELSEWHERE))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pair(backend, family):
    return PlainKernels(Noise(family)), BACKENDS[backend](Noise(family))


def same(a, b):
    width = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(width), b.view(width))


def weights(count, dtype):
    torch.manual_seed(count)
    weight = torch.randn(count) * torch.logspace(-9, 2, count)
    special = torch.tensor([0.0, 1.0, 2.0**-14, -(2.0**-20), 6.5e4])
    weight[: min(5, count)] = special[:count]
    return weight.to(dtype)


def test_there_is_one_fast_backend_for_the_cpu():
    assert FAST == ["numba"]
    assert sorted(BACKENDS) == ["numba", "plain", "triton"]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_probe_has_the_bits_of_the_plain_one(backend, family, dtype, count, threads):
    plain, fast = pair(backend, family)
    weight = weights(count, dtype)
    for start, scale in ((0, None), (333, torch.tensor(0.7))):
        expected, got = torch.full_like(weight, 7), torch.full_like(weight, 7)
        plain.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, expected)
        fast.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, got)
        assert same(got, expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_an_update_has_the_bits_of_the_plain_one(backend, family, dtype, count, threads):
    plain, fast = pair(backend, family)
    expected, got = weights(count, dtype), weights(count, dtype)
    for scale, decay in ((None, 1.0), (torch.tensor(1.3), 0.99)):
        plain.update(SEED, 77, expected, -2e-4, decay, scale)
        mean, variance = fast.update(SEED, 77, got, -2e-4, decay, scale)
        assert same(got, expected)
        for value, exact in zip((mean, variance), plain.statistics(got), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
        assert [mean, variance] == list(fast.statistics(got))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", COUNTS)
def test_stored_numbers_have_the_bits_of_the_plain_ones(backend, dtype, count, threads):
    """And those of an update: the rounding of both reads the same words."""
    plain, fast = pair(backend, "gaussian")
    values, updated = weights(count, torch.float32), weights(count, dtype)
    for start in (0, 333):
        expected, got = (torch.full_like(updated, 7) for _ in range(2))
        plain.store(SEED, 77, start, values.clone(), expected)
        fast.store(SEED, 77, start, values.clone(), got)
        assert same(got, expected)
    moved = updated.float()
    plain.update(SEED, 77, moved, -2e-4, 0.99, None)
    plain.update(SEED, 77, updated, -2e-4, 0.99, None)
    fast.store(SEED, 77, 0, moved, got)
    assert same(got, updated)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(backend, dtype):
    plain, fast = pair(backend, "binomial")
    special = torch.tensor([np.inf, -np.inf, np.nan, torch.finfo(dtype).max, -1e30, 1e-42])
    expected, got, probed = (special.to(dtype) for _ in range(3))
    plain.update(1, 2, expected, 1e-3, 1.5, None)
    fast.update(1, 2, got, 1e-3, 1.5, None)
    fast.shift(1, 2, 0, probed.clone(), 1e-3, None, probed)
    finite = [0, 1, 3, 4, 5]
    assert same(got[finite], expected[finite])
    assert got[2].isnan() and expected[2].isnan() and probed[2].isnan()
    assert probed[0] == np.inf and probed[1] == -np.inf


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_rows_have_the_bits_of_the_plain_ones(backend, family, width, threads):
    plain, fast = pair(backend, family)
    weight = torch.randn(3000, width)
    rows = torch.randint(0, 3000, (1500,)).unique()
    arguments = (SEED, 5, rows, weight, 1e-2, torch.tensor(0.3))
    assert same(fast.shift_rows(*arguments), plain.shift_rows(*arguments))


def layout_of_odd_tensors():
    """Three tensors with padding; the second is shared by two blocks, in slices."""
    lengths, tensors, rows, offset = (100, 3 * 50, PIECE + 77), [], [], 0
    for index, length in enumerate(lengths):
        if index == 1:
            for row in range(3):
                for block, start, stop in ((1, 5, 20), (2, 20, 50)):
                    at = row * 50 + start
                    rows.append((offset + at, offset + at, stop - start, at, 40 + index, block))
        else:
            block = {0: 0, 2: 4}[index]
            rows.append((offset, offset, length, 0, 40 + index, block))
        padded = -(-length // 128) * 128
        tensors.append((40 + index, padded))
        offset += padded
    return Layout(cut(rows), tuple(tensors), (0, 1, 2, 4), offset)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_buffers_have_the_bits_of_the_plain_ones(backend, family, dtype, threads):
    plain, fast = pair(backend, family)
    layout = layout_of_odd_tensors()
    inside = torch.zeros(layout.size, dtype=torch.bool)
    for place, _, length, *_ in layout.table.tolist():
        inside[place : place + length] = True
    scales = torch.linspace(0.5, 2, 5)
    rates, decays = (torch.linspace(a, b, 5).double() for a, b in ((-1e-3, 1e-3), (0.9, 1)))
    expected = torch.randn(layout.size)
    got = expected.clone()
    for own in (scales, None):
        shifted, twin = (torch.zeros(layout.size, dtype=dtype) for _ in range(2))
        plain.shift_layout(layout, 9, expected, 1e-2, own, twin)
        fast.shift_layout(layout, 9, got, 1e-2, own, shifted)
        assert same(shifted[inside], twin[inside])
        plain.update_layout(layout, 9, expected, rates, decays, own)
        known = fast.update_layout(layout, 9, got, rates, decays, own)
        assert same(got[inside], expected[inside])
        again = fast.statistics_layout(layout, got)
        for a, b, c in zip(known, again, plain.statistics_layout(layout, got), strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", FAST)
def test_other_dtypes_and_strides_take_the_plain_way(backend):
    plain, fast = pair(backend, "binomial")
    for weight in (torch.randn(50, dtype=torch.float64), torch.randn(100)[::2]):
        expected, got = torch.empty(50, dtype=weight.dtype), torch.empty(50, dtype=weight.dtype)
        plain.shift(1, 1, 0, weight, 0.1, None, expected)
        fast.shift(1, 1, 0, weight, 0.1, None, got)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
def test_shares_are_the_whole_table(parts):
    for count in (1, PIECE, 10 * PIECE + 3):
        table = whole(3, 0, count)
        slices = shares(table, parts)
        assert len(slices) <= parts
        assert np.array_equal(np.concatenate([table[s] for s in slices]), table)


def test_the_backend_is_chosen_by_device_and_what_is_installed(monkeypatch, caplog):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    gpu = "triton" if importlib.util.find_spec("triton") else "plain"
    assert choice.kernels_for("auto", Noise(), [cpu]).name == "numba"
    assert choice.kernels_for("auto", Noise(), [torch.device("meta")]).name == "numba"
    assert choice.kernels_for("auto", Noise(), [cuda]).name == gpu
    assert choice.kernels_for("auto", Noise(), [cuda, cpu]).name in (gpu, "numba")
    assert choice.kernels_for("plain", Noise(), [cpu]).name == "plain"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert choice.kernels_for("auto", Noise(), [cpu]).name == "plain"
        assert choice.kernels_for("auto", Noise(), [cuda]).name == "plain"
    assert len(caplog.records) == 2
    with pytest.raises(InputError, match="unknown backend, got 'numbra'; did you mean 'numba'"):
        choice.kernels_for("numbra", Noise(), [cpu])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whole_tensors_in_other_streams_are_the_plain_ones(backend, family, threads):
    plain, fast = pair(backend, family)
    tensors = [(7, 1), (2**32 - 1, 63), (5, 2**17 + 1), (7, 1000)]
    for stream in (2, 3):
        found = fast.draw(SEED, stream, tensors, "cpu")
        expected = plain.draw(SEED, stream, tensors, "cpu")
        assert [len(noise) for noise in found] == [1, 63, 2**17 + 1, 1000]
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        assert same(plain.draw(SEED, stream, tensors[1:2], "cpu")[0], expected[1])
    assert not same(*(plain.draw(SEED, stream, [(7, 1000)], "cpu")[0] for stream in (2, 3)))
    own = Noise(family).at_elements(SEED, 7, 0, 1000)
    assert same(fast.draw(SEED, 0, [(7, 1000)], "cpu")[0], own)
    assert fast.draw(SEED, 2, [], "cpu") == []


FORMS = {
    "rows": lambda rows, columns: Form(torch.rand(rows), None),
    "product": lambda rows, columns: Form(None, (torch.randn(rows, 5), torch.randn(5, columns))),
    "both": lambda rows, columns: Form(
        torch.rand(rows), (torch.randn(rows, 2), torch.randn(2, columns))
    ),
}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", sorted(FORMS))
@pytest.mark.parametrize("size", [(1, 1), (7, 63), (130, 1031), (1031, 2)])
def test_a_shaped_matrix_has_the_bits_of_the_plain_one(backend, dtype, kind, size, threads):
    plain, fast = pair(backend, "gaussian")
    weight = weights(size[0] * size[1], dtype).view(size)
    form = FORMS[kind](*size)
    some = torch.tensor([0, size[0] - 1, 0])
    for rows, count in ((slice(0, size[0]), size[0]), (slice(0, 1), 1), (some, 3)):
        outs = [torch.full((count, size[1]), 9.0).to(dtype) for _ in range(2)]
        for kernels, out in zip((plain, fast), outs, strict=True):
            kernels.shift_matrix(SEED, 77, weight, rows, -0.03, form, out)
        assert same(*outs)
    moved = [weight.clone(), weight.clone()]
    plain.update_matrix(SEED, 77, moved[0], -0.3, 0.99, form)
    known = fast.update_matrix(SEED, 77, moved[1], -0.3, 0.99, form)
    assert same(*moved)
    for found, expected in zip(known, plain.statistics(moved[0]), strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
