"""Sums of a gradient: the plain ones by their definition, the compiled ones by the plain."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from zopeft.kernels import BACKENDS
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.noise import FAMILIES, Noise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COUNTS = [1, 63, 1000, 2**20 + 1]
SEED, ADDRESS = 2**63 + 12345, 0xFFFFFFFF
numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)


def numbers(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, generator=generator).to(dtype)


@pytest.mark.parametrize("count", [1, 63, 1000, 5000])
@pytest.mark.parametrize("start", [0, 130, 3 * 96])
@pytest.mark.parametrize("length", [1, 96, 4096])
def test_folding_by_its_definition(count, start, length, monkeypatch):
    monkeypatch.setattr("zopeft.kernels.plain_gradient.CHUNK", 1200)
    values = numbers(count)
    noise = Noise("rademacher").at_elements(SEED, ADDRESS, start, count)
    exact = torch.zeros(length, dtype=torch.float64)
    places = torch.arange(start, start + count) % length
    exact.index_add_(0, places, noise.double() * values.double())
    kernels = PlainKernels(Noise("rademacher"))
    folded, square = kernels.fold(SEED, ADDRESS, start, values, length)
    torch.testing.assert_close(folded.double(), exact, rtol=1e-5, atol=1e-4)
    assert float(square) == pytest.approx(float(values.double().square().sum()), rel=1e-12)
    assert float(square) == float(kernels.squares(values))


@numba
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_compiled_sums_are_the_plain_ones(family, dtype, count, threads):
    plain, fast = PlainKernels(Noise(family)), BACKENDS["numba"](Noise(family))
    values = numbers(count, dtype)
    for start, length in ((0, 4096), (333, 4096), (333, 100)):
        expected, square = plain.fold(SEED, ADDRESS, start, values, length)
        got, found = fast.fold(SEED, ADDRESS, start, values, length)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6 * count**0.5 + 1e-5)
        torch.testing.assert_close(found, square, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(fast.squares(values), square, rtol=1e-12, atol=0.0)


@numba
def test_compiled_sums_do_not_depend_on_threads():
    kernels, values = BACKENDS["numba"](Noise("rademacher")), numbers(2**20 + 1)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(kernels.fold(SEED, ADDRESS, 0, values, 4096))
    torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parametrize("backend", ["plain", pytest.param("numba", marks=numba)])
def test_sums_of_what_is_spoilt_strided_or_empty(backend):
    kernels, plain = BACKENDS[backend](Noise("rademacher")), PlainKernels(Noise("rademacher"))
    for spoilt in (torch.inf, -torch.inf, torch.nan):
        values = numbers(1000)
        values[7] = spoilt
        assert not bool(kernels.squares(values).isfinite())
        assert not bool(kernels.fold(SEED, 1, 0, values, 4096)[1].isfinite())
    largest = torch.full((3,), torch.finfo(torch.float32).max)
    assert bool(kernels.squares(largest).isfinite())
    strided = numbers(600).view(20, 30)[:, 3:13]
    expected, square = plain.fold(SEED, 1, 0, strided.contiguous(), 64)
    got, found = kernels.fold(SEED, 1, 0, strided, 64)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found, square)
    nothing = torch.empty(0)
    assert float(kernels.squares(nothing)) == 0.0
    assert kernels.fold(SEED, 1, 0, nothing, 64)[0].tolist() == [0.0] * 64
