"""Kernels of matrices: a sum of products has the same bits however many there are of them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from zopeft.kernels.form import Form
from zopeft.kernels.numba_backend import NumbaKernels
from zopeft.kernels.plain import ROUNDINGS
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import Noise

SEED, ADDRESS = 2**63 + 7, 0xFFFFFFFF
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RANKS = [0, 1, 3, 4, 5, 8, 11]
WIDTHS = [1, 63, 513]


def pair():
    noise = Noise("gaussian")
    return PlainKernels(noise), NumbaKernels(noise)


def form_of(rows, width, rank, noisy):
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, width, generator=generator)
    # Zeros of both signs: a sum that began at zero would lose the sign.
    left[0], right[:, 0] = 0.0, -0.0
    scale = torch.rand(rows, generator=generator) if noisy else None
    return Form(scale, (left, right) if rank else None)


def weights(rows, width, dtype):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    weight[0] = -0.0
    return weight.to(dtype)


def same(a, b):
    width = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(width), b.view(width))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_probe_and_an_update_have_the_bits_of_the_plain_ones(rank, noisy, dtype):
    if not rank and not noisy:
        pytest.skip("a direction of nothing")
    plain, fast = pair()
    for width in WIDTHS:
        form, weight = form_of(5, width, rank, noisy), weights(5, width, dtype)
        for rows in (slice(0, 5), slice(1, 4), torch.tensor([4, 0, 2])):
            count = len(torch.arange(5)[rows])
            expected, got = (torch.full((count, width), 7.0, dtype=dtype) for _ in range(2))
            plain.shift_matrix(SEED, ADDRESS, weight, rows, 3e-3, form, expected)
            fast.shift_matrix(SEED, ADDRESS, weight, rows, 3e-3, form, got)
            assert same(got, expected)
        for rounding in ROUNDINGS[:2]:
            plain.rounding = fast.rounding = rounding
            expected, got, unmeasured = (weight.clone() for _ in range(3))
            plain.update_matrix(SEED, ADDRESS, expected, -0.02, 0.99, form)
            found = fast.update_matrix(SEED, ADDRESS, got, -0.02, 0.99, form)
            assert fast.update_matrix(SEED, ADDRESS, unmeasured, -0.02, 0.99, form, False) is None
            assert same(got, expected) and same(unmeasured, expected)
            assert found is not None
            for value, other in zip(found, plain.statistics(expected), strict=True):
                torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_nobody_measures_writes_the_same(dtype):
    plain, fast = pair()
    expected, got = (weights(5, 513, dtype).view(-1) for _ in range(2))
    plain.update(SEED, ADDRESS, expected, -0.02, 0.99, None)
    assert fast.update(SEED, ADDRESS, got, -0.02, 0.99, None, False) is None
    assert same(got, expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_probes_of_rows_with_scales_have_the_bits_of_each(rounding, dtype):
    both = pair()
    for width in WIDTHS:
        form, weight = form_of(5, width, 0, True), weights(5, width, dtype)
        for rows in (slice(0, 5), slice(1, 4)):
            shape = (rows.stop - rows.start, width)
            ahead, behind = (torch.full(shape, 7.0, dtype=dtype) for _ in range(2))
            for kernels in both:
                kernels.rounding = rounding
                key = (SEED, ADDRESS, weight, rows)
                kernels.shift_rows_both(*key, 3e-3, form.scale, ahead, behind)
                for step, got in ((3e-3, ahead), (-3e-3, behind)):
                    expected = torch.full(shape, 7.0, dtype=dtype)
                    both[0].rounding = rounding
                    both[0].shift_matrix(*key, step, form, expected)
                    assert same(got, expected), (width, rows, step)
            assert not same(ahead, behind)
