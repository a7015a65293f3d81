"""Every backend gives the bits of the plain one: noise, probe, update; moments to fp64."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np
import pytest
import torch
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

from zopeft.errors import InputError
from zopeft.kernels import BACKENDS, choice
from zopeft.kernels.form import Form
from zopeft.kernels.plain_backend import PlainKernels
from zopeft.kernels.runs import PIECE, shares, whole
from zopeft.noise import FAMILIES, Noise

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

COUNTS = [1, 63, 1000, 2**20 + 1]
ELSEWHERE = {"triton": "works on CUDA tensors, see test_kernels_triton.py and test_gpu.py"}
FAST = sorted(set(BACKENDS) - {"plain"} - set(ELSEWHERE))


def pair(backend, family):
    return PlainKernels(Noise(family)), BACKENDS[backend](Noise(family))


def test_there_is_one_fast_backend_for_the_cpu():
    assert FAST == ["numba"]
    assert sorted(BACKENDS) == ["numba", "plain", "triton"]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_probe_has_the_bits_of_the_plain_one(backend, family, dtype, count, threads):
    check_probe(*pair(backend, family), dtype, count)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_an_update_has_the_bits_of_the_plain_one(backend, family, dtype, count, threads):
    check_update(*pair(backend, family), dtype, count)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", COUNTS)
def test_stored_numbers_have_the_bits_of_the_plain_ones(backend, dtype, count, threads):
    check_store(*pair(backend, "gaussian"), dtype, count)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(backend, dtype):
    check_not_finite(*pair(backend, "binomial"), dtype)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_rows_have_the_bits_of_the_plain_ones(backend, family, width, threads):
    check_rows(*pair(backend, family), width, 3000, 1500)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_buffers_have_the_bits_of_the_plain_ones(backend, family, dtype, threads):
    check_layout(*pair(backend, family), odd_layout(PIECE + 77), dtype)


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
