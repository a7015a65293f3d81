"""The Triton kernels give the bits of the plain ones, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from zopeft.kernels import triton_backend
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.kernels.runs import Layout, cut
from zopeft.noise import FAMILIES as FOUND
from zopeft.noise import Noise

if not triton_backend.interprets():
    pytest.skip("needs TRITON_INTERPRET=1, see conftest.py", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COUNTS = [1, 63, 1000, 4097]
SEED = 2**63 + 12345
FAMILIES = sorted(FOUND)


def pair(family, tile=1024):
    return PlainKernels(Noise(family)), triton_backend.TritonKernels(Noise(family), tile)


def same(a, b):
    width = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(width), b.view(width))


def weights(count, dtype):
    torch.manual_seed(count)
    weight = torch.randn(count) * torch.logspace(-9, 2, count)
    special = torch.tensor([0.0, 1.0, 2.0**-14, -(2.0**-20), 6.5e4])
    weight[: min(5, count)] = special[:count]
    return weight.to(dtype)


def test_there_are_three_families():
    assert len(FAMILIES) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_probe_has_the_bits_of_the_plain_one(family, dtype, count):
    plain, fast = pair(family)
    weight = weights(count, dtype)
    for start, scale in ((0, None), (333, torch.tensor(0.7))):
        expected, got = torch.full_like(weight, 7), torch.full_like(weight, 7)
        plain.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, expected)
        fast.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, got)
        assert same(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_an_update_has_the_bits_of_the_plain_one(family, dtype, count):
    plain, fast = pair(family)
    expected, got = weights(count, dtype), weights(count, dtype)
    for scale, decay in ((None, 1.0), (torch.tensor(1.3), 0.99)):
        plain.update(SEED, 77, expected, -2e-4, decay, scale)
        mean, variance = fast.update(SEED, 77, got, -2e-4, decay, scale)
        assert same(got, expected)
        for value, exact in zip((mean, variance), plain.statistics(got), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
        assert [mean, variance] == list(fast.statistics(got))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", COUNTS)
def test_stored_numbers_have_the_bits_of_the_plain_ones(dtype, count):
    """And those of an update: the rounding of both reads the same words."""
    plain, fast = pair("gaussian")
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(dtype):
    plain, fast = pair("binomial")
    infinity = float("inf")
    special = torch.tensor(
        [infinity, -infinity, float("nan"), torch.finfo(dtype).max, -1e30, 1e-42]
    )
    expected, got, probed = (special.to(dtype) for _ in range(3))
    plain.update(1, 2, expected, 1e-3, 1.5, None)
    fast.update(1, 2, got, 1e-3, 1.5, None)
    fast.shift(1, 2, 0, probed.clone(), 1e-3, None, probed)
    finite = [0, 1, 3, 4, 5]
    assert same(got[finite], expected[finite])
    assert got[2].isnan() and expected[2].isnan() and probed[2].isnan()
    assert probed[0] == infinity and probed[1] == -infinity


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_rows_have_the_bits_of_the_plain_ones(family, width):
    plain, fast = pair(family, 256)
    weight = torch.randn(300, width)
    rows = torch.randint(0, 300, (12,)).unique()
    arguments = (SEED, 5, rows, weight, 1e-2, torch.tensor(0.3))
    assert same(fast.shift_rows(*arguments), plain.shift_rows(*arguments))


def layout_of_odd_tensors():
    """Three tensors with padding; the second is shared by two blocks, in slices."""
    lengths, tensors, rows, offset = (100, 3 * 50, 377), [], [], 0
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_buffers_have_the_bits_of_the_plain_ones(family, dtype):
    plain, fast = pair(family, 256)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_depends_on_the_tile(family):
    weight = weights(1000, torch.bfloat16)
    results = []
    for tile in (128, 512, 4096):
        _, fast = pair(family, tile)
        out, changed = torch.empty_like(weight), weight.clone()
        fast.shift(SEED, 3, 5, weight, 1e-2, None, out)
        fast.update(SEED, 3, changed, 1e-3, 1.0, None)
        results.append((out, changed))
    for out, changed in results[1:]:
        assert same(out, results[0][0]) and same(changed, results[0][1])


def test_pieces_of_a_long_tensor_are_those_of_the_whole():
    count = 2 * triton_backend.PIECE + 77
    plain, fast = pair("binomial", 1 << 14)
    weight = torch.randn(count, dtype=torch.bfloat16)
    expected, got = torch.empty_like(weight), torch.empty_like(weight)
    plain.shift(1, 2, 3, weight, 1e-2, None, expected)
    fast.shift(1, 2, 3, weight, 1e-2, None, got)
    assert same(got, expected)
    mean, variance = fast.update(1, 2, got, 1e-2, 1.0, None)
    plain.update(1, 2, expected, 1e-2, 1.0, None)
    assert same(got, expected)
    torch.testing.assert_close((mean, variance), plain.statistics(got), rtol=1e-12, atol=1e-12)


def test_other_dtypes_and_strides_take_another_way():
    plain, fast = pair("binomial")
    for weight in (torch.randn(50, dtype=torch.float64), torch.randn(100)[::2]):
        expected, got = torch.empty(50, dtype=weight.dtype), torch.empty(50, dtype=weight.dtype)
        plain.shift(1, 1, 0, weight, 0.1, None, expected)
        fast.shift(1, 1, 0, weight, 0.1, None, got)
        assert torch.equal(got, expected)
