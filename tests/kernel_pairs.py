"""What every fast backend is asked beside the plain one: the same bits.

Each check takes the plain kernels and the fast ones of one noise family.
"""

from __future__ import annotations

import math
from functools import wraps

import torch

from zopeft.kernels.plain import ROUNDINGS
from zopeft.kernels.runs import Layout, cut

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = 2**63 + 12345


def same(a, b):
    """Whether two tensors have the same bits."""
    width = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.view(width), b.view(width))


def weights(count, dtype):
    """Numbers of all sizes, special ones first."""
    torch.manual_seed(count)
    weight = torch.randn(count) * torch.logspace(-9, 2, count)
    special = torch.tensor([0.0, 1.0, 2.0**-14, -(2.0**-20), 6.5e4])
    weight[: min(5, count)] = special[:count]
    return weight.to(dtype)


def check_probe(plain, fast, dtype, count):
    """A probe has the bits of the plain one."""
    weight = weights(count, dtype)
    for start, scale in ((0, None), (333, torch.tensor(0.7))):
        expected, got = torch.full_like(weight, 7), torch.full_like(weight, 7)
        plain.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, expected)
        fast.shift(SEED, 0xFFFFFFFF, start, weight, 3e-3, scale, got)
        assert same(got, expected)


def rounded_both_ways(check):
    """Has a check made with both ways to round an update, one after the other."""

    @wraps(check)
    def checked(plain, fast, dtype, count):
        ends = []
        for rounding in ROUNDINGS[:2] if dtype != torch.float32 else ROUNDINGS[:1]:
            plain.rounding = fast.rounding = rounding
            ends.append(check(plain, fast, dtype, count))
        # A single number may well be rounded alike.
        assert count < 60 or not all(same(end, ends[0]) for end in ends[1:]) or len(ends) == 1

    return checked


@rounded_both_ways
def check_update(plain, fast, dtype, count):
    """An update has the bits of the plain one, and its moments to fp64."""
    expected, got = weights(count, dtype), weights(count, dtype)
    for scale, decay in ((None, 1.0), (torch.tensor(1.3), 0.99)):
        plain.update(SEED, 77, expected, -2e-4, decay, scale)
        mean, variance = fast.update(SEED, 77, got, -2e-4, decay, scale)
        assert same(got, expected)
        for value, exact in zip((mean, variance), plain.statistics(got), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)
        assert [mean, variance] == list(fast.statistics(got))
    return got


@rounded_both_ways
def check_store(plain, fast, dtype, count):
    """Stored numbers have the bits of the plain ones, and of an update: both read one word."""
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
    return got


def check_not_finite(plain, fast, dtype):
    """What is not finite stays so."""
    quiet = torch.tensor([0x7F800001, 0x7FC00000, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    stored = torch.zeros(3, dtype=dtype)
    # Triton's interpreter cuts bf16 off.
    if dtype != torch.float32 and fast.name == "numba":
        fast.store(1, 2, 0, quiet, stored)
        assert stored.isnan().all()
    largest = torch.finfo(dtype).max
    special = torch.tensor([math.inf, -math.inf, math.nan, largest, -1e30, 1e-42])
    expected, got, probed = (special.to(dtype) for _ in range(3))
    plain.update(1, 2, expected, 1e-3, 1.5, None)
    fast.update(1, 2, got, 1e-3, 1.5, None)
    fast.shift(1, 2, 0, probed.clone(), 1e-3, None, probed)
    finite = [0, 1, 3, 4, 5]
    assert same(got[finite], expected[finite])
    assert got[2].isnan() and expected[2].isnan() and probed[2].isnan()
    assert probed[0] == math.inf and probed[1] == -math.inf


def check_rows(plain, fast, width, height, picked):
    """Some rows of a table have the bits of the plain ones."""
    weight = torch.randn(height, width)
    rows = torch.randint(0, height, (picked,)).unique()
    arguments = (SEED, 5, rows, weight, 1e-2, torch.tensor(0.3))
    assert same(fast.shift_rows(*arguments), plain.shift_rows(*arguments))


def odd_layout(last):
    """Three tensors with padding; the second is shared by two blocks, in slices.

    Args:
        last: Elements of the third.
    """
    lengths, tensors, rows, offset = (100, 3 * 50, last), [], [], 0
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


def check_layout(plain, fast, layout, dtype):
    """Probe and update of a flat buffer have the bits of the plain ones."""
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
