"""The Triton kernels give the bits of the plain ones, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from kernel_pairs import (
    DTYPES,
    SEED,
    check_layout,
    check_not_finite,
    check_probe,
    check_rows,
    check_store,
    check_update,
    odd_layout,
    same,
    weights,
)

from zopeft.kernels import triton_backend
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import FAMILIES as FOUND
from zopeft.noise import Noise

if not triton_backend.interprets():
    pytest.skip("needs TRITON_INTERPRET=1, see conftest.py", allow_module_level=True)

COUNTS = [1, 63, 1000, 4097]
FAMILIES = sorted(FOUND)


def pair(family, tile=1024):
    return PlainKernels(Noise(family)), triton_backend.TritonKernels(Noise(family), tile)


def test_there_are_three_families():
    assert len(FAMILIES) == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_probe_has_the_bits_of_the_plain_one(family, dtype, count):
    check_probe(*pair(family), dtype, count)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_an_update_has_the_bits_of_the_plain_one(family, dtype, count):
    check_update(*pair(family), dtype, count)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", COUNTS)
def test_stored_numbers_have_the_bits_of_the_plain_ones(dtype, count):
    check_store(*pair("gaussian"), dtype, count)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(dtype):
    check_not_finite(*pair("binomial"), dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_rows_have_the_bits_of_the_plain_ones(family, width):
    check_rows(*pair(family, 256), width, 300, 12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_buffers_have_the_bits_of_the_plain_ones(family, dtype):
    check_layout(*pair(family, 256), odd_layout(377), dtype)


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
