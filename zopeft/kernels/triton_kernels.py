"""The kernels in Triton: noise, probe, update and moments, without z ever in memory.

A program does one run of a table (see `zopeft.kernels.runs`) in tiles of `TILE` elements.
A tile begins at a whole counter, so that each counter is computed once, and the elements
before the run's first are masked. Nothing depends on the tile but the order in which the
moments are summed.

The arithmetic is that of `zopeft.kernels.plain`, operation by operation. Launched with
``enable_fp_fusion=False`` no product and sum are contracted, and the root is the one that
is rounded exactly, so the bits are the plain ones.
"""

# Triton's own language: pointers and blocks, typed when a kernel is compiled.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, arg-type, no-any-return"

import triton
import triton.language as tl

from zopeft.kernels.runs import PIECE as _PIECE
from zopeft.noise.binomial import CENTRE as _CENTRE
from zopeft.noise.binomial import SCALE as _SCALE
from zopeft.noise.dither import FACTORS, SHIFT, UPDATED
from zopeft.noise.gaussian import COSINE as _COSINE
from zopeft.noise.gaussian import LOG as _LOG
from zopeft.noise.gaussian import ROOT_HALF as _ROOT_HALF
from zopeft.noise.gaussian import SINE as _SINE
from zopeft.noise.gaussian import TURN as _TURN
from zopeft.noise.gaussian import TWO_LN_2 as _TWO_LN_2
from zopeft.noise.philox import KEY_STEPS, MULTIPLIERS

GAUSSIAN, BINOMIAL, RADEMACHER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
M0, M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
K0, K1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])
D0, D1 = tl.constexpr(FACTORS[0]), tl.constexpr(FACTORS[1])
MIX = tl.constexpr(SHIFT)
UPDATED0, UPDATED1 = tl.constexpr(UPDATED & 0xFFFFFFFF), tl.constexpr(UPDATED >> 32)
PIECE, CENTRE, SCALE = tl.constexpr(_PIECE), tl.constexpr(_CENTRE), tl.constexpr(_SCALE)
ROOT_HALF, TURN, TWO_LN_2 = tl.constexpr(_ROOT_HALF), tl.constexpr(_TURN), tl.constexpr(_TWO_LN_2)
LOG, SINE, COSINE = tl.constexpr(_LOG), tl.constexpr(_SINE), tl.constexpr(_COSINE)
LOG_TERMS, SINE_TERMS = tl.constexpr(len(_LOG)), tl.constexpr(len(_SINE))
COSINE_TERMS = tl.constexpr(len(_COSINE))
FINE, FINEST, SMALL = tl.constexpr(2.0**24), tl.constexpr(2.0**-24), tl.constexpr(2.0**-14)
INFINITE, SIGN = tl.constexpr(0x7F800000), tl.constexpr(31)
LARGEST_BFLOAT16, LARGEST_FLOAT16 = tl.constexpr(3.3895313892515355e38), tl.constexpr(65504.0)


@triton.jit
def _philox(counter, address, stream: tl.constexpr, k0, k1):
    """Philox4x32-10; four blocks of uint32."""
    c0 = counter.to(tl.uint32)
    c1 = tl.zeros_like(c0) + address.to(tl.uint32)
    c2 = tl.zeros_like(c0) + stream
    c3 = tl.zeros_like(c0)
    k0, k1 = k0.to(tl.uint32), k1.to(tl.uint32)
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, M0), tl.umulhi(c2, M1)
        low0, low1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + K0, k1 + K1
    return c0, c1, c2, c3


@triton.jit
def _in_order(a, b, c, d):
    """One block of four: a[0], b[0], c[0], d[0], a[1], ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _polynomial(x, coefficients: tl.constexpr, count: tl.constexpr):
    value = tl.zeros_like(x) + coefficients[0]
    for i in tl.static_range(1, count):
        value = value * x + coefficients[i]
    return value


@triton.jit
def _pair(word, angle):
    """Two normal numbers from two words."""
    uniform = ((word >> 8).to(tl.int32).to(tl.float32) + 0.5) * TURN
    bits = uniform.to(tl.int32, bitcast=True)
    exponent = (bits - ROOT_HALF) >> 23
    fraction = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    mantissa = _polynomial(fraction, LOG, LOG_TERMS) * fraction
    radius = tl.sqrt_rn(exponent.to(tl.float32) * (-TWO_LN_2) + mantissa)
    turn = (angle.to(tl.int32, bitcast=True) >> 8).to(tl.float32) * TURN
    square = turn * turn
    sine = _polynomial(square, SINE, SINE_TERMS) * turn
    cosine = _polynomial(square, COSINE, COSINE_TERMS).to(tl.uint32, bitcast=True) ^ (angle << SIGN)
    return cosine.to(tl.float32, bitcast=True) * radius, sine * radius


@triton.jit
def _byte_sum(word):
    total = (word & 0xFF) + ((word >> 8) & 0xFF) + ((word >> 16) & 0xFF) + (word >> 24)
    return (total.to(tl.int32) - CENTRE).to(tl.float32) * SCALE


@triton.jit
def _draw(first, address, k0, k1, FAMILY: tl.constexpr, TILE: tl.constexpr):
    """Noise of the elements ``first ... first + TILE - 1``, `first` at a counter's beginning."""
    if FAMILY == RADEMACHER:
        counters = first // 128 + tl.arange(0, TILE // 128)
        w0, w1, w2, w3 = _philox(counters, address, 0, k0, k1)
        words = tl.expand_dims(_in_order(w0, w1, w2, w3), 1)
        signs = (words >> tl.expand_dims(tl.arange(0, 32).to(tl.uint32), 0)) & 1
        z = tl.reshape(signs, (TILE,)).to(tl.float32) * 2.0 - 1.0
    else:
        counters = first // 4 + tl.arange(0, TILE // 4)
        w0, w1, w2, w3 = _philox(counters, address, 0, k0, k1)
        if FAMILY == GAUSSIAN:
            z0, z1 = _pair(w0, w1)
            z2, z3 = _pair(w2, w3)
        else:
            z0, z1, z2, z3 = _byte_sum(w0), _byte_sum(w1), _byte_sum(w2), _byte_sum(w3)
        z = _in_order(z0, z1, z2, z3)
    return z


@triton.jit
def _dither(first, address, k0, k1, TILE: tl.constexpr):
    """The words of the elements ``first ... first + TILE - 1``; see `zopeft.noise.dither`."""
    name = address.to(tl.uint32)
    x = ((first + tl.arange(0, TILE)).to(tl.uint32) + (name ^ k0.to(tl.uint32))) * D0
    return (x ^ (x >> MIX) ^ (name ^ k1.to(tl.uint32))) * D1


@triton.jit
def _updated(first, address, k0, k1, HASHED: tl.constexpr, TILE: tl.constexpr):
    """The words by which an update is rounded; `first` at a counter's beginning."""
    if HASHED:
        return _dither(
            first, address, k0.to(tl.uint32) ^ UPDATED0, k1.to(tl.uint32) ^ UPDATED1, TILE
        )
    else:
        counters = first // 4 + tl.arange(0, TILE // 4)
        w0, w1, w2, w3 = _philox(counters, address, 1, k0, k1)
        return _in_order(w0, w1, w2, w3)


@triton.jit
def _round(x, word, dtype: tl.constexpr):
    """Rounds to numbers that a 16-bit dtype holds; see `plain.stochastic_round`."""
    bits = x.to(tl.uint32, bitcast=True)
    if dtype == tl.bfloat16:
        near = ((bits + (word >> 16)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        limit = LARGEST_BFLOAT16
    else:
        near = ((bits + (word >> 19)) & 0xFFFFE000).to(tl.float32, bitcast=True)
        uniform = (word >> 8).to(tl.int32).to(tl.float32) * FINEST
        small = tl.floor(x * FINE + uniform) * FINEST
        near = tl.where(tl.abs(x) < SMALL, small, near)
        limit = LARGEST_FLOAT16
    near = tl.minimum(tl.maximum(near, -limit), limit)
    return tl.where((bits & INFINITE) == INFINITE, x, near)


@triton.jit
def _nearest(x, dtype: tl.constexpr):
    """Rounds to nearest, ties to even: Triton's interpreter cuts bf16 off instead."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        near = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where((bits & INFINITE) == INFINITE, x, near.to(tl.float32, bitcast=True))
    return x


@triton.jit
def _run(table, row, start, count, address, WHOLE: tl.constexpr):
    """A row of the table; of a tensor as a whole, which needs none, its piece `row`."""
    if WHOLE:
        at = row.to(tl.int64) * PIECE
        return at, at, tl.minimum(count - at, PIECE), start + at, address, at * 0
    else:
        place = table + row.to(tl.int64) * 6
        return (
            tl.load(place),
            tl.load(place + 1),
            tl.load(place + 2),
            tl.load(place + 3),
            tl.load(place + 4),
            tl.load(place + 5),
        )


@triton.jit
def shift(
    table,
    start: tl.int64,
    count: tl.int64,
    address: tl.int64,
    k0: tl.uint32,
    k1: tl.uint32,
    step: tl.float32,
    scales,
    weight,
    out,
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    DITHERED: tl.constexpr,
    FAMILY: tl.constexpr,
    TILE: tl.constexpr,
):
    """``out = round(weight + step * (scale * z))``."""
    source, target, length, begin, name, block = _run(
        table, tl.program_id(0), start, count, address, WHOLE
    )
    span: tl.constexpr = 128 if FAMILY == RADEMACHER else 4
    skip = begin % span
    tile = tl.program_id(1).to(tl.int64) * TILE
    at = tile - skip + tl.arange(0, TILE)
    inside = (at >= 0) & (at < length)
    first = begin - skip + tile
    u = _draw(first, name, k0, k1, FAMILY, TILE)
    if SCALED:
        u = u * tl.load(scales + block)
    x = tl.load(weight + source + at, mask=inside, other=0.0).to(tl.float32)
    x = u * step + x
    dtype: tl.constexpr = out.dtype.element_ty
    if DITHERED:
        x = _round(x, _dither(first, name, k0, k1, TILE), dtype)
    else:
        x = _nearest(x, dtype)
    tl.store(out + target + at, x.to(dtype), mask=inside)


@triton.jit
def update(
    table,
    start: tl.int64,
    count: tl.int64,
    address: tl.int64,
    k0: tl.uint32,
    k1: tl.uint32,
    coefficients,
    decays,
    scales,
    weight,
    moments,
    WHOLE: tl.constexpr,
    SCALED: tl.constexpr,
    WRITE: tl.constexpr,
    HASHED: tl.constexpr,
    FAMILY: tl.constexpr,
    TILE: tl.constexpr,
):
    """``weight = round(decay * weight + coefficient * (scale * z))``; mean and squares.

    Without `WRITE`, the moments of the weights as they are.
    """
    row = tl.program_id(0)
    source, _, length, begin, name, block = _run(table, row, start, count, address, WHOLE)
    span: tl.constexpr = 128 if FAMILY == RADEMACHER else 4
    dtype: tl.constexpr = weight.dtype.element_ty
    skip = begin % span
    pivot = tl.zeros((), tl.float64)
    total, squares = tl.zeros((TILE,), tl.float64), tl.zeros((TILE,), tl.float64)
    for tile in range(0, length + skip, TILE):
        at = tile - skip + tl.arange(0, TILE)
        inside = (at >= 0) & (at < length)
        x = tl.load(weight + source + at, mask=inside, other=0.0).to(tl.float32)
        if WRITE:
            first = begin - skip + tile
            u = _draw(first, name, k0, k1, FAMILY, TILE)
            if SCALED:
                u = u * tl.load(scales + block)
            x = x * tl.load(decays + block) + u * tl.load(coefficients + block)
            if dtype != tl.float32:
                x = _round(x, _updated(first, name, k0, k1, HASHED, TILE), dtype)
            tl.store(weight + source + at, x.to(dtype), mask=inside)
        if tile == 0:
            # Of the run's first element, so that squares of what is left stay small.
            pivot = tl.sum(tl.where(at == 0, x, 0.0)).to(tl.float64)
        d = tl.where(inside, x.to(tl.float64) - pivot, 0.0)
        total += d
        squares += d * d
    t = tl.sum(total)
    tl.store(moments + row * 2, pivot + t / length)
    tl.store(moments + row * 2 + 1, tl.sum(squares) - t * t / length)


@triton.jit
def store(
    start: tl.int64,
    count: tl.int64,
    address: tl.int64,
    k0: tl.uint32,
    k1: tl.uint32,
    values,
    out,
    HASHED: tl.constexpr,
    TILE: tl.constexpr,
):
    """``out = round(values)``, stochastically as `update` does; fp32 into 16-bit storage."""
    skip = start % 4
    tile = tl.program_id(0).to(tl.int64) * TILE
    at = tile - skip + tl.arange(0, TILE)
    inside = (at >= 0) & (at < count)
    x = tl.load(values + at, mask=inside, other=0.0)
    dtype: tl.constexpr = out.dtype.element_ty
    x = _round(x, _updated(start - skip + tile, address, k0, k1, HASHED, TILE), dtype)
    tl.store(out + at, x.to(dtype), mask=inside)
