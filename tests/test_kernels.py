"""Stochastic rounding and the plain kernels."""

from __future__ import annotations

import pytest
import torch

from zopeft.kernels import plain
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import Noise, rounding_words

SIXTEEN_BIT = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_exact_numbers_stay(dtype):
    values = torch.randn(10_000).to(dtype)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-14, 2.0**-20, 6e4]).to(dtype)
    values = torch.cat((values, special))
    words = rounding_words(1, 1, 0, values.numel())
    rounded = plain.stochastic_round(values.float(), words, dtype)
    assert torch.equal(rounded.view(torch.int16)[:-6], values.view(torch.int16)[:-6])
    assert torch.equal(rounded, values)


@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
@pytest.mark.parametrize("value", [1.0003, -0.1234567, 3.1e-5, -7.7e-7, 1234.567])
def test_the_mean_is_kept_and_only_neighbours_are_used(dtype, value):
    count = 200_000
    words = rounding_words(5, 3, 0, count)
    rounded = plain.stochastic_round(torch.full((count,), value), words, dtype)
    levels = rounded.unique().double()
    assert len(levels) == 2
    low, high = levels.tolist()
    assert low < value < high
    exact = torch.tensor(value, dtype=torch.float32).double()
    deviation = (high - low) / 2 / count**0.5
    assert abs(rounded.double().mean() - exact) < 6 * deviation


def test_fp16_overflow_is_clamped_and_nan_stays():
    value = torch.tensor([1e9, -1e9, float("nan"), float("inf")])
    rounded = plain.stochastic_round(value, rounding_words(0, 0, 0, 4), torch.float16)
    assert rounded[0] == 65504 and rounded[1] == -65504
    assert rounded[2].isnan() and rounded[3].isinf()


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="bfloat16 or float16"):
        plain.stochastic_round(torch.zeros(1), rounding_words(0, 0, 0, 1), torch.float64)


def words_of(weight, seed, address, start=0, rounding="hashed"):
    kernels = PlainKernels(Noise())
    kernels.rounding = rounding
    return kernels.updated_words(seed, address, start, weight.numel(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT])
@pytest.mark.parametrize("count", [1, 63, 1000, 2**18 + 1])
def test_an_update_in_pieces_is_the_update(dtype, count):
    weight = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    u = Noise().at_elements(8, 2, 0, count)
    whole, pieces = weight.clone(), weight.clone()
    plain.update_(whole, u, -1e-3, 0.999, words_of(whole, 8, 2))
    half = count // 2
    for a, b in ((0, half), (half, count)):
        if b > a:
            plain.update_(pieces[a:b], u[a:b], -1e-3, 0.999, words_of(pieces[a:b], 8, 2, a))
    assert torch.equal(whole, pieces)
    # A single 16-bit number may well be rounded to what it was.
    assert count == 1 or not torch.equal(whole, weight)


@pytest.mark.parametrize("rounding", ["hashed", "stochastic"])
def test_updates_far_below_an_ulp_count_on_average_in_bf16(rounding):
    weight = torch.ones(4096, dtype=torch.bfloat16)
    step = torch.ones(4096)
    for seed in range(100):
        plain.update_(weight, step, 1e-5, 1.0, words_of(weight, seed, 1, rounding=rounding))
    # One ulp above 1 is 2**-7: rounding to nearest would never have moved.
    assert weight.double().mean() == pytest.approx(1.001, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BIT])
def test_perturb_rounds_once_from_fp32(dtype):
    weight = torch.randn(33, 7).to(dtype)
    u = torch.randn(33, 7)
    expected = (weight.float() + u * 1e-2).to(dtype)
    assert torch.equal(plain.perturb(weight, u, 1e-2), expected)
