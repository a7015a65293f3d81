"""The kernels in numba: noise, probe, update and moments, without z ever in memory.

All work is cut into tiles that stay in the first-level cache, and each tile goes through
short loops that LLVM turns into vector instructions: Philox words, noise, arithmetic,
rounding. Products and sums are never contracted, so the bits are those of the plain
version (`zopeft.kernels.plain`), whatever the machine, the tiles and the threads.

A kernel takes a table of runs, one row a run of consecutive elements of one tensor (see
`zopeft.kernels.runs`), and from which of its rows to which it is to work. It knows nothing of
threads: `_spreading` shares the rows out, without the interpreter. Everything compiled is in this
one file, because numba's cache on disk looks no further than the file of a kernel to see that it is
stale.
"""

# numba's own language: arrays and machine integers, typed by the signatures below.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc"

from __future__ import annotations

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from zopeft.kernels.numba_cache import Keeping
from zopeft.kernels.runs import ADDRESS, BLOCK, LENGTH, OUT, START, WEIGHT
from zopeft.noise.binomial import CENTRE, SCALE
from zopeft.noise.dither import FACTORS, SHIFT, UPDATED
from zopeft.noise.gaussian import COSINE, LOG, ROOT_HALF, SINE, TURN, TWO_LN_2
from zopeft.noise.philox import KEY_STEPS, MULTIPLIERS

TILE = 1024
LANES = 256
FLOAT32, BFLOAT16, FLOAT16, NOTHING = 0, 1, 2, 3
GAUSSIAN, BINOMIAL, RADEMACHER = 0, 1, 2

F, S, U, W = np.float32, np.int32, np.uint32, np.uint64
_LOW, _32 = W(0xFFFFFFFF), W(32)
_M0, _M1, _K0, _K1 = (W(word) for word in MULTIPLIERS + KEY_STEPS)
_LOG = tuple(F(c) for c in LOG)
_SINE = tuple(F(c) for c in SINE)
_COSINE = tuple(F(c) for c in COSINE)
_TURN, _TWO_LN_2, _HALF, _ONE = F(TURN), F(-TWO_LN_2), F(0.5), F(1.0)
_BYTES, _SCALE = U(0x00FF00FF), F(SCALE)
_TOP, _MAGNITUDE, _INFINITE = U(31), U(0x7FFFFFFF), U(0x7F800000)
_LARGEST, _NAN = U(0x7F7F0000), F(np.nan)
_FINE, _SMALL, _LIMIT = F(2.0**24), F(2.0**-14), F(65504.0)
_D0, _D1 = (U(factor) for factor in FACTORS)
_MIX, _UPDATED = U(SHIFT), W(UPDATED)
_inline: Any = numba.njit(forceinline=True)
_array: Any = numba.carray  # type: ignore[attr-defined]


def _reinterpret(source: Any, target: Any, convert: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def reinterpret(context, value):
        def generate(context, builder, signature, arguments):
            return convert(builder, arguments[0])

        return target(source), generate

    return reinterpret


_t = numba.types
_bits = _reinterpret(_t.float32, _t.uint32, lambda b, v: b.bitcast(v, ir.IntType(32)))
_float = _reinterpret(_t.uint32, _t.float32, lambda b, v: b.bitcast(v, ir.FloatType()))


@intrinsic  # type: ignore[untyped-decorator]
def _signing(context, word, address):
    """Writes plus one for each bit of a word that is set and minus one for the others.

    A vector operation by name: what LLVM makes of a loop over the bits takes ten times as long.
    """

    def generate(context, builder, signature, arguments):
        whole, numbers = ir.VectorType(ir.IntType(32), 32), ir.VectorType(ir.FloatType(), 32)
        nothing, none = ir.Constant(whole, ir.Undefined), ir.Constant(whole, [0] * 32)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(ir.IntType(32), 0))
        each = builder.shuffle_vector(first, nothing, none)
        bits = builder.and_(each, ir.Constant(whole, [1 << bit for bit in range(32)]))
        up, down = (ir.Constant(numbers, [sign] * 32) for sign in (1.0, -1.0))
        signs = builder.select(builder.icmp_unsigned("!=", bits, none), up, down)
        builder.store(signs, builder.inttoptr(arguments[1], numbers.as_pointer()), align=4)
        return context.get_dummy_value()

    return _t.none(_t.uint32, _t.int64), generate


_signs: Any = _signing


@intrinsic  # type: ignore[untyped-decorator]
def _spreading(context, bounds, entry, threads, kernel, arguments):
    """Has a kernel called with a begin, an end and some arguments, part by part.

    ``bounds[k]`` and ``bounds[k + 1]`` are begin and end of part k. With an `entry` the parts are
    for whoever comes next of so many threads: it is the address of OpenMP's function that calls
    another one on all of them (see `zopeft.kernels.team`). Without, they are done here in order.
    """
    own = context.resolve_function_type(kernel, (_t.int64, _t.int64, *arguments.types), {})
    signature = _t.none(bounds, entry, threads, kernel, arguments)

    def generate(context, builder, signature, given):
        word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        places = context.make_array(bounds)(context, builder, given[0])
        kinds = [word, word, word.as_pointer(), word, context.get_value_type(arguments)]
        frame = cgutils.alloca_once(builder, ir.LiteralStructType(kinds))
        parts = builder.sub(places.nitems, ir.Constant(word, 1))
        zero = ir.Constant(word, 0)
        for number, value in enumerate((zero, parts, places.data, zero, given[4])):
            builder.store(value, cgutils.gep_inbounds(builder, frame, 0, number))
        body = _part_by_part(context, builder.module, frame.type, kernel, own)
        kind = ir.FunctionType(ir.VoidType(), [body.type, byte, ir.IntType(32), ir.IntType(32)])
        alone = builder.icmp_unsigned("==", given[1], ir.Constant(word, 0))
        held = builder.bitcast(frame, byte)
        with builder.if_else(alone) as (here, there):
            with here:
                builder.call(body, [held])
            with there:
                count = builder.trunc(given[2], ir.IntType(32))
                called = builder.inttoptr(given[1], kind.as_pointer())
                builder.call(called, [body, held, count, ir.Constant(ir.IntType(32), 0)])
        failed = builder.load(cgutils.gep_inbounds(builder, frame, 0, 3))
        with cgutils.if_unlikely(builder, builder.icmp_unsigned("!=", failed, zero)):
            problem = ("a kernel broke off: there is no memory for its tiles",)
            context.call_conv.return_user_exc(builder, MemoryError, problem)
        return context.get_dummy_value()

    return signature, generate


def _part_by_part(context, module, frame, kernel, own):
    """The function of C that does parts until there are no more; see `_spreading`."""
    word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
    name = module.get_unique_name("zopeft_part_by_part")
    body = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte]), name)
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block("begin"))
    held = builder.bitcast(body.args[0], frame)
    taken, parts, bounds, failed, packed = (
        cgutils.gep_inbounds(builder, held, 0, number) for number in range(5)
    )
    count, bounds = builder.load(parts), builder.load(bounds)
    arguments = cgutils.unpack_tuple(builder, builder.load(packed))
    ask, work, done = (body.append_basic_block(at) for at in ("ask", "work", "done"))
    builder.branch(ask)
    builder.position_at_end(ask)
    part = builder.atomic_rmw("add", taken, ir.Constant(word, 1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", part, count), work, done)
    builder.position_at_end(work)
    ends = [builder.add(part, ir.Constant(word, more)) for more in (0, 1)]
    begin, end = (builder.load(builder.gep(bounds, [at])) for at in ends)
    code = kernel.dispatcher.overloads[own.args]
    context.add_linking_libs([code.library])
    given = [begin, end, *arguments]
    status, _ = context.call_internal_no_propagate(builder, code.fndesc, own, given)
    with cgutils.if_unlikely(builder, status.is_error):
        builder.store(ir.Constant(word, 1), failed)
    builder.branch(ask)
    builder.position_at_end(done)
    builder.ret_void()
    return body


_kernel = Keeping(_spreading).compiled


def _converts_halves() -> bool:
    """Whether the processor that is compiled for has instructions from and to fp16.

    For x86 without them LLVM calls C functions that a process need not have, and where they
    are missing it does not raise: it aborts.
    """
    if platform.machine() in ("aarch64", "arm64"):
        return True
    given = getattr(numba.config, "CPU_FEATURES", None)
    features = get_host_cpu_features() if given is None else given
    return {"+avx", "+f16c"} <= set(features.split(","))


@_inline
def _from_half_by_bits(half):
    """Returns the fp32 number of fp16 bits; NaN becomes quiet, as in hardware."""
    magnitude, sign = U(U(half) & U(0x7FFF)), U(U(U(half) & U(0x8000)) << U(16))
    wide = U(U(magnitude << U(13)) + U(0x38000000))
    wide = U(wide + U(0x38000000)) if magnitude >= U(0x7C00) else wide
    wide = U(wide | U(0x00400000)) if magnitude > U(0x7C00) else wide
    small = _bits(F(S(magnitude)) * _TURN)
    return _float(U((small if magnitude < U(0x0400) else wide) | sign))


@_inline
def _to_half_by_bits(value):
    """Returns the fp16 bits of an fp32 number, rounded to nearest, ties to even."""
    bits = _bits(value)
    magnitude, sign = U(bits & _MAGNITUDE), U(U(bits >> U(16)) & U(0x8000))
    even = U(magnitude + U(0x0FFF) + U(U(magnitude >> U(13)) & U(1)))
    half = U(U(even - U(0x38000000)) >> U(13))
    # Numbers of fp32 from 1/2 on are 2**-24 apart, as those of fp16 below 2**-14 are.
    small = U(_bits(_float(magnitude) + _HALF) - U(0x3F000000))
    half = small if magnitude < U(0x38800000) else half
    half = U(0x7C00) if magnitude >= U(0x477FF000) else half
    nan = U(U(0x7E00) | U(U(magnitude >> U(13)) & U(0x03FF)))
    return np.uint16(U((nan if magnitude > _INFINITE else half) | sign))


_from_half: Any = _from_half_by_bits
_to_half: Any = _to_half_by_bits
if _converts_halves():
    _from_half = _reinterpret(
        _t.uint16, _t.float32, lambda b, v: b.fpext(b.bitcast(v, ir.HalfType()), ir.FloatType())
    )
    _to_half = _reinterpret(
        _t.float32, _t.uint16, lambda b, v: b.bitcast(b.fptrunc(v, ir.HalfType()), ir.IntType(16))
    )


@_inline
def _words(key, address, stream, first, count, words):
    """Philox4x32-10 of `count` counters, lanes of 64 bits whose upper halves are ignored."""
    for i in range(count):
        c0, c1, c2, c3 = W(first + i), address, stream, W(0)
        k0, k1 = key & _LOW, key >> _32
        for _ in range(10):
            p0, p1 = (c0 & _LOW) * _M0, (c2 & _LOW) * _M1
            c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1, (p0 >> _32) ^ c3 ^ k1, p0
            k0, k1 = (k0 + _K0) & _LOW, (k1 + _K1) & _LOW
        words[4 * i] = U(c0)
        words[4 * i + 1] = U(c1)
        words[4 * i + 2] = U(c2)
        words[4 * i + 3] = U(c3)


@_inline
def _binomial(words, z):
    for i in range(words.size):
        pairs = U(words[i] & _BYTES) + U(U(words[i] >> U(8)) & _BYTES)
        total = U(pairs & U(0xFFFF)) + U(U(pairs) >> U(16))
        z[i] = F(S(S(total) - S(CENTRE))) * _SCALE


@_inline
def _gaussian(words, z):
    for pair in range(words.size // 2):
        uniform = (F(S(words[2 * pair] >> U(8))) + _HALF) * _TURN
        bits = S(_bits(uniform))
        exponent = S(S(bits - S(ROOT_HALF)) >> S(23))
        f = _float(U(bits - S(exponent << S(23)))) - _ONE
        log = _LOG[0]
        for c in _LOG[1:]:
            log = log * f + c
        radius = np.sqrt(F(exponent) * _TWO_LN_2 + log * f)
        angle = words[2 * pair + 1]
        turn = F(S(S(angle) >> S(8))) * _TURN
        square = turn * turn
        sine = _SINE[0]
        for c in _SINE[1:]:
            sine = sine * square + c
        cosine = _COSINE[0]
        for c in _COSINE[1:]:
            cosine = cosine * square + c
        cosine = _float(U(_bits(cosine) ^ U(angle << _TOP)))
        z[2 * pair] = cosine * radius
        z[2 * pair + 1] = sine * turn * radius


@_inline
def _rademacher(words, z):
    at = z.ctypes.data
    for j in range(words.size):
        _signs(words[j], at + 128 * j)


@_inline
def _draw(key, family, address, start, count, words, z):
    """Writes noise of `count` elements to z and returns where in z it begins.

    The upper half of an address is its stream.
    """
    span = 128 if family == RADEMACHER else 4
    first = start // span
    skip = start - first * span
    counters = (skip + count + span - 1) // span
    _words(key, W(address), W(address) >> _32, first, counters, words)
    if family == GAUSSIAN:
        _gaussian(words[: 4 * counters], z)
    elif family == BINOMIAL:
        _binomial(words[: 4 * counters], z)
    else:
        _rademacher(words[: 4 * counters], z)
    return skip


@_inline
def _load(source, kind, at, count, x):
    """Reads `count` stored numbers from element `at` on, as fp32."""
    if kind == FLOAT32:
        exact = source.view(np.float32)[at : at + count]
        for i in range(count):
            x[i] = exact[i]
        return
    stored = source.view(np.uint16)[at : at + count]
    if kind == BFLOAT16:
        for i in range(count):
            x[i] = _float(U(U(stored[i]) << U(16)))
    else:
        for i in range(count):
            x[i] = _from_half(stored[i])


@_inline
def _store(x, count, target, kind, at):
    """Writes `count` numbers from element `at` on, rounded to nearest."""
    if kind == FLOAT32:
        exact = target.view(np.float32)[at : at + count]
        for i in range(count):
            exact[i] = x[i]
        return
    stored = target.view(np.uint16)[at : at + count]
    if kind == BFLOAT16:
        for i in range(count):
            bits = _bits(x[i])
            even = U(bits + U(0x7FFF) + U(U(bits >> U(16)) & U(1)))
            nan = U(bits & _MAGNITUDE) > _INFINITE
            stored[i] = np.uint16(U(0x7FC0) if nan else U(even >> U(16)))
    else:
        for i in range(count):
            stored[i] = _to_half(x[i])


@_inline
def _to_bfloat16(value, word):
    """Rounds one number as `plain.stochastic_round` does; the sign and 31 bits of fp32."""
    bits = _bits(value)
    up = U(U(bits + U(word >> U(16))) & U(0xFFFF0000))
    up = U(U(up & U(0x80000000)) | U(min(U(up & _MAGNITUDE), U(0x7F7F0000))))
    return bits if U(bits & _INFINITE) == _INFINITE else up


@_inline
def _to_float16(value, word):
    """Rounds one number as `plain.stochastic_round` does; still in fp32."""
    bits = _bits(value)
    near = _float(U(U(bits + U(word >> U(19))) & U(0xFFFFE000)))
    small = np.floor(value * _FINE + F(S(word >> U(8))) * _TURN) * _TURN
    near = small if abs(value) < _SMALL else near
    near = min(max(near, -_LIMIT), _LIMIT)
    return value if U(bits & _INFINITE) == _INFINITE else near


@_inline
def _dither(low, high, element):
    """The word of one element; see `zopeft.noise.dither`."""
    x = U(U(element + low) * _D0)
    return U(U(U(x ^ U(x >> _MIX)) ^ high) * _D1)


@_inline
def _round_by_philox(x, count, kind, key, address, start, words):
    """Rounds to numbers that the 16-bit dtype holds, by words of the address's other stream."""
    first = start // 4
    skip = start - first * 4
    _words(key, W(address), W(1), first, (skip + count + 3) // 4, words)
    word = words[skip : skip + count]
    if kind == BFLOAT16:
        for i in range(count):
            x[i] = _float(_to_bfloat16(x[i], word[i]))
    else:
        for i in range(count):
            x[i] = _to_float16(x[i], word[i])


@_inline
def _dithered_bfloat16(x, word):
    """The bits of a number, rounded by a word of its own.

    From the largest number of bfloat16 on nothing is added: what is cut off then leaves that one,
    an infinity, or a NaN of which arithmetic has set a bit in the upper half.
    """
    bits = _bits(x)
    more = U(word >> U(16)) if U(bits & _MAGNITUDE) < _LARGEST else U(0)
    return np.uint16(U(U(bits + more) >> U(16)))


@_inline
def _quieten(x):
    """Makes every NaN one that arithmetic gives, whose upper half is a NaN."""
    for i in range(x.size):
        x[i] = x[i] if x[i] == x[i] else _NAN


@_inline
def _store_dithered(x, count, target, kind, at, key, address, start):
    """Does `_store`, rounded stochastically as a probe is: elements from `start` on."""
    stored = target.view(np.uint16)[at : at + count]
    low, high = U(W(address) ^ key), U(W(address) ^ W(key >> _32))
    first = U(start)
    if kind == BFLOAT16:
        for i in range(count):
            stored[i] = _dithered_bfloat16(x[i], _dither(low, high, U(first + U(i))))
    else:
        for i in range(count):
            stored[i] = _to_half(_to_float16(x[i], _dither(low, high, U(first + U(i)))))


@_inline
def _store_updated(x, count, target, kind, at, key, address, start, hashed, words):
    """Does `_store`, rounded stochastically as an update is; see `plain.ROUNDINGS`."""
    if hashed:
        _store_dithered(x, count, target, kind, at, W(key ^ _UPDATED), address, start)
    else:
        _round_by_philox(x, count, kind, key, address, start, words)
        _store(x, count, target, kind, at)


@_inline
def _accumulate(x, count, pivot, total, squares):
    """Adds a tile's sums and sums of squares about `pivot`; element i goes to lane i % 256."""
    for at in range(0, count, LANES):
        n = min(LANES, count - at)
        group, sums, powers = x[at : at + n], total[:n], squares[:n]
        for lane in range(n):
            d = np.float64(group[lane]) - pivot
            sums[lane] += d
            powers[lane] += d * d


@_inline
def _close(total, squares, count, pivot, moments):
    """Writes count, mean and sum of squared deviations of a run; clears the lanes."""
    t = s = 0.0
    for lane in range(LANES):
        t += total[lane]
        s += squares[lane]
        total[lane] = squares[lane] = 0.0
    moments[0], moments[1], moments[2] = count, pivot + t / count, s - t * t / count


@_inline
def _scale(scale, z, y):
    for i in range(y.size):
        y[i] = scale * z[i]


@_inline
def _add(step, scale, z, y):
    for i in range(y.size):
        y[i] = y[i] + step * (scale * z[i])


@_inline
def _add_to(step, scale, z, source, target):
    """Does `_add` from one memory to another: no detour for what is fp32 in both."""
    for i in range(target.size):
        target[i] = source[i] + step * (scale * z[i])


@_inline
def _decay(decay, coefficient, scale, z, y):
    for i in range(y.size):
        y[i] = y[i] * decay + (scale * z[i]) * coefficient


@_inline
def _decay_dithered(decay, coefficient, scale, z, stored, key, address, start):
    """Does `_decay` for bfloat16, rounded stochastically by the words of a hash."""
    low, high = U(W(address) ^ key), U(W(address) ^ W(key >> _32))
    first = U(start)
    for i in range(stored.size):
        word = _dither(low, high, U(first + U(i)))
        x = _float(U(U(stored[i]) << U(16))) * decay + (scale * z[i]) * coefficient
        stored[i] = _dithered_bfloat16(x, word)


@_inline
def _add_dithered(step, scale, z, source, target, key, address, start):
    """Does `_add_to` for bfloat16 in both, rounded stochastically as a probe is."""
    low, high = U(W(address) ^ key), U(W(address) ^ W(key >> _32))
    first = U(start)
    for i in range(target.size):
        word = _dither(low, high, U(first + U(i)))
        x = _float(U(U(source[i]) << U(16))) + step * (scale * z[i])
        target[i] = _dithered_bfloat16(x, word)


@_kernel("i8[:,::1], u8, i8, f4[::1], f4, u1[::1], i8, u1[::1], i8, i8")
def shift(begin, end, table, key, family, scales, step, weight, kind, out, out_kind, dithered):
    """``out = round(weight + step * (scale * z))``; without weights, ``out = scale * z``."""
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x = np.empty(TILE, np.float32)
    for row in range(begin, end):
        scale, length = scales[table[row, BLOCK]], table[row, LENGTH]
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            address, start = table[row, ADDRESS], table[row, START] + at
            skip = _draw(key, family, address, start, n, words, z)
            if kind == FLOAT32 and out_kind == FLOAT32:
                first, to = table[row, WEIGHT] + at, table[row, OUT] + at
                exact = weight.view(np.float32)[first : first + n]
                to_exact = out.view(np.float32)[to : to + n]
                _add_to(step, scale, z[skip : skip + n], exact, to_exact)
                continue
            if kind == BFLOAT16 and out_kind == BFLOAT16 and dithered:
                first, to = table[row, WEIGHT] + at, table[row, OUT] + at
                source = weight.view(np.uint16)[first : first + n]
                target = out.view(np.uint16)[to : to + n]
                _add_dithered(step, scale, z[skip : skip + n], source, target, key, address, start)
                continue
            if kind == NOTHING:
                _scale(scale, z[skip : skip + n], x[:n])
            else:
                _load(weight, kind, table[row, WEIGHT] + at, n, x)
                _add(step, scale, z[skip : skip + n], x[:n])
            if dithered:
                _store_dithered(x, n, out, out_kind, table[row, OUT] + at, key, address, start)
            else:
                _store(x, n, out, out_kind, table[row, OUT] + at)


@_inline
def _add_both(step, scale, z, source, one, two):
    """Does `_add_to` for a step and for minus the step."""
    for i in range(z.size):
        d = step * (scale * z[i])
        one[i] = source[i] + d
        two[i] = source[i] - d


@_inline
def _add_both_dithered(step, scale, z, source, one, two, key, address, start):
    """Does `_add_dithered` for both steps, which are rounded by the same words."""
    low, high = U(W(address) ^ key), U(W(address) ^ W(key >> _32))
    first = U(start)
    for i in range(z.size):
        word = _dither(low, high, U(first + U(i)))
        x, d = _float(U(U(source[i]) << U(16))), step * (scale * z[i])
        one[i] = _dithered_bfloat16(x + d, word)
        two[i] = _dithered_bfloat16(x - d, word)


@_kernel("i8[:,::1], u8, i8, f4[::1], f4, u1[::1], i8, u1[::1], u1[::1], i8, i8")
def shift_both(
    begin, end, table, key, family, scales, step, weight, kind, out, back, out_kind, dithered
):
    """``out = round(weight + step * (scale * z))`` and ``back`` with minus the step: one z."""
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x = np.empty(TILE, np.float32)
    for row in range(begin, end):
        scale, length = scales[table[row, BLOCK]], table[row, LENGTH]
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            address, start = table[row, ADDRESS], table[row, START] + at
            skip = _draw(key, family, address, start, n, words, z)
            own, first, to = z[skip : skip + n], table[row, WEIGHT] + at, table[row, OUT] + at
            if kind == FLOAT32 and out_kind == FLOAT32:
                exact = weight.view(np.float32)[first : first + n]
                one, two = out.view(np.float32)[to : to + n], back.view(np.float32)[to : to + n]
                _add_both(step, scale, own, exact, one, two)
                continue
            if kind == BFLOAT16 and out_kind == BFLOAT16 and dithered:
                source = weight.view(np.uint16)[first : first + n]
                up, down = out.view(np.uint16)[to : to + n], back.view(np.uint16)[to : to + n]
                _add_both_dithered(step, scale, own, source, up, down, key, address, start)
                continue
            for sign, target in ((_ONE, out), (-_ONE, back)):
                _load(weight, kind, first, n, x)
                _add(sign * step, scale, own, x[:n])
                if dithered:
                    _store_dithered(x, n, target, out_kind, to, key, address, start)
                else:
                    _store(x, n, target, out_kind, to)


@_kernel("i8[:,::1], u8, i8, f4[::1], f4[::1], f4[::1], u1[::1], i8, i8, f8[:,::1]")
def update(
    begin, end, table, key, family, scales, coefficients, decays, weight, kind, hashed, moments
):
    """``weight = round(decay * weight + coefficient * (scale * z))``, and its moments.

    Without columns in `moments` none are taken: sums in fp64 take longer than all the rest
    of what a product of factors needs.
    """
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x = np.empty(TILE, np.float32)
    total, squares = np.zeros(LANES), np.zeros(LANES)
    for row in range(begin, end):
        block, length = table[row, BLOCK], table[row, LENGTH]
        scale, coefficient, decay = scales[block], coefficients[block], decays[block]
        pivot = 0.0
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            address, start = table[row, ADDRESS], table[row, START] + at
            skip = _draw(key, family, address, start, n, words, z)
            place, own = table[row, WEIGHT] + at, z[skip : skip + n]
            if kind == FLOAT32:
                y = weight.view(np.float32)[place : place + n]
                _decay(decay, coefficient, scale, own, y)
            elif kind == BFLOAT16 and hashed:
                y, stored = x[:n], weight.view(np.uint16)[place : place + n]
                _decay_dithered(
                    decay, coefficient, scale, own, stored, W(key ^ _UPDATED), address, start
                )
            else:
                y = x[:n]
                _load(weight, kind, place, n, x)
                _decay(decay, coefficient, scale, own, y)
                _store_updated(x, n, weight, kind, place, key, address, start, hashed, words)
            if moments.size > 0:
                if kind != FLOAT32:
                    _load(weight, kind, place, n, x)
                pivot = np.float64(y[0]) if at == 0 else pivot
                _accumulate(y, n, pivot, total, squares)
        if moments.size > 0:
            _close(total, squares, length, pivot, moments[row])


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context, address):
    """A pointer to the bytes at an address."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return _t.CPointer(_t.uint8)(_t.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _calling(context, code, count, places, constants):
    """Calls the code at an address with a number and two addresses."""

    def generate(context, builder, signature, arguments):
        kinds = [argument.type for argument in arguments[1:]]
        kind = ir.FunctionType(ir.VoidType(), kinds).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])
        return context.get_dummy_value()

    return _t.none(_t.int64, _t.int64, _t.int64, _t.int64), generate


_bytes_at: Any = _pointer
_call: Any = _calling


@_kernel("i8[:,::1], i8, f4[:,::1], u8[::1], i8, i8[:,::1], i8[::1], u8, i8")
def mapped(begin, end, table, code, constants, keys, family, places, kinds, key, hashed):
    """Has a formula's code work on weights, buffers and noises, tile by tile.

    A row of `places` has the addresses of one block's weights and buffers in memory; `kinds` says
    what each of them holds. Weights of 16 bits are rounded as by `update`.
    """
    words, z = np.empty(TILE + 128, np.uint32), np.empty((keys.size, TILE + 256), np.float32)
    held, x = kinds.size, np.empty((kinds.size, TILE), np.float32)
    own = np.empty(held + keys.size, np.int64)
    for row in range(begin, end):
        block, length, address = table[row, BLOCK], table[row, LENGTH], table[row, ADDRESS]
        numbers = constants[min(block, constants.shape[0] - 1)]
        for at in range(0, length, TILE):
            n, start = min(TILE, length - at), table[row, START] + at
            place = table[row, WEIGHT] + at
            for each in range(held):
                own[each] = places[block, each] + (4 if kinds[each] == FLOAT32 else 2) * place
                if kinds[each] != FLOAT32:
                    stored = _array(_bytes_at(own[each]), (2 * n,))
                    _load(stored, kinds[each], 0, n, x[each])
                    own[each] = x[each].ctypes.data
            for each in range(keys.size):
                skip = _draw(keys[each], family, address, start, n, words, z[each])
                own[held + each] = z[each].ctypes.data + 4 * skip
            _call(code, n, own.ctypes.data, numbers.ctypes.data)
            if kinds[0] != FLOAT32:
                target = _array(_bytes_at(places[block, 0] + 2 * place), (2 * n,))
                _store_updated(x[0], n, target, kinds[0], 0, key, address, start, hashed, words)


@_kernel("i8[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[::1], f4, f4[:,::1]")
def flip(begin, end, table, weight, u, rows, columns, step, out):
    """``out = weight + step * (u * r s^T)`` of fp32, a row of the matrix a run."""
    for run in range(begin, end):
        row = table[run, START]
        # Signs change no digit: in which order they are multiplied does not matter.
        own = step * rows[row]
        source, numbers, target = weight[row], u[row], out[row]
        for i in range(target.size):
            target[i] = source[i] + own * (numbers[i] * columns[i])


@_kernel("i8[:,::1], u8, u1[::1], u1[::1], i8, i8")
def store(begin, end, table, key, values, out, kind, hashed):
    """``out = round(values)``, stochastically as `update` does; fp32 into 16-bit storage."""
    words, x = np.empty(TILE + 128, np.uint32), np.empty(TILE, np.float32)
    for row in range(begin, end):
        length = table[row, LENGTH]
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            _load(values, FLOAT32, table[row, WEIGHT] + at, n, x)
            _quieten(x[:n])
            address, start, to = table[row, ADDRESS], table[row, START] + at, table[row, OUT] + at
            _store_updated(x, n, out, kind, to, key, address, start, hashed, words)


@_inline
def _four(left, right, k, column):
    """Four factors of a row and what they are multiplied with, from `column` on."""
    factors = left[k], left[k + 1], left[k + 2], left[k + 3]
    rows = right[k], right[k + 1], right[k + 2], right[k + 3]
    return factors, (rows[0][column:], rows[1][column:], rows[2][column:], rows[3][column:])


@_inline
def _products(left, right, column, count, begun, u):
    """Adds the first `count` products of a row to u; writes them, where u is not begun."""
    k = 0
    if not begun and count > 0:
        _scale(left[0], right[0, column : column + u.size], u)
        k = 1
    while k + 4 <= count:
        (f0, f1, f2, f3), (r0, r1, r2, r3) = _four(left, right, k, column)
        for i in range(u.size):
            u[i] = (((u[i] + f0 * r0[i]) + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
        k += 4
    for one in range(k, count):
        factor, other = left[one], right[one, column : column + u.size]
        for i in range(u.size):
            u[i] = u[i] + factor * other[i]


@_inline
def _compose(key, family, address, start, column, scales, left, right, count, words, z, u):
    """Writes a row's u from `column` on: its noise times its scale, then `count` products."""
    if scales.size > 0:
        skip = _draw(key, family, address, start, u.size, words, z)
        _scale(scales[0], z[skip : skip + u.size], u)
    _products(left, right, column, count, scales.size > 0, u)


@_inline
def _shift_last(step, u, begun, left, right, column, source, target):
    """Does `_add_to` with the last four products made on the fly: they stay in registers."""
    (f0, f1, f2, f3), (r0, r1, r2, r3) = _four(left, right, left.size - 4, column)
    if begun:
        for i in range(target.size):
            d = (((u[i] + f0 * r0[i]) + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            target[i] = source[i] + step * d
    else:
        for i in range(target.size):
            d = ((f0 * r0[i] + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            target[i] = source[i] + step * d


@_inline
def _decay_last(decay, coefficient, u, begun, left, right, column, y):
    """Does `_decay` with the last four products made on the fly."""
    (f0, f1, f2, f3), (r0, r1, r2, r3) = _four(left, right, left.size - 4, column)
    if begun:
        for i in range(y.size):
            d = (((u[i] + f0 * r0[i]) + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            y[i] = y[i] * decay + d * coefficient
    else:
        for i in range(y.size):
            d = ((f0 * r0[i] + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            y[i] = y[i] * decay + d * coefficient


@_inline
def _decay_last_dithered(
    decay, coefficient, u, begun, left, right, column, stored, key, address, start
):
    """Does `_decay_last` for bfloat16, rounded stochastically by the words of a hash."""
    (f0, f1, f2, f3), (r0, r1, r2, r3) = _four(left, right, left.size - 4, column)
    low, high = U(W(address) ^ key), U(W(address) ^ W(key >> _32))
    first = U(start)
    if begun:
        for i in range(stored.size):
            d = (((u[i] + f0 * r0[i]) + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            x = _float(U(U(stored[i]) << U(16))) * decay + d * coefficient
            stored[i] = _dithered_bfloat16(x, _dither(low, high, U(first + U(i))))
    else:
        for i in range(stored.size):
            d = ((f0 * r0[i] + f1 * r1[i]) + f2 * r2[i]) + f3 * r3[i]
            x = _float(U(U(stored[i]) << U(16))) * decay + d * coefficient
            stored[i] = _dithered_bfloat16(x, _dither(low, high, U(first + U(i))))


_MATRIX = "i8[:,::1], u8, i8, f4[:,::1], f4[:,::1], f4[:,::1]"


@_kernel(f"{_MATRIX}, f4, u1[::1], i8, u1[::1], i8, i8")
def shift_matrix(
    begin, end, table, key, family, scales, left, right, step, weight, kind, out, out_kind, dithered
):
    """``out = round(weight + step * u)``, a row a run; see `Form`."""
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x, u = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    fused = kind == FLOAT32 and out_kind == FLOAT32 and left.shape[1] >= 4
    sources = weight[: weight.size * fused].view(np.float32)
    targets = out[: out.size * fused].view(np.float32)
    early = left.shape[1] - 4 if fused else left.shape[1]
    begun = scales.shape[1] > 0 or early > 0
    for row in range(begin, end):
        own, length = table[row, BLOCK], table[row, LENGTH]
        address, start = table[row, ADDRESS], table[row, START]
        scale, factors = scales[own], left[own]
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            y = u[:n]
            _compose(
                key, family, address, start + at, at, scale, factors, right, early, words, z, y
            )
            first, to = table[row, WEIGHT] + at, table[row, OUT] + at
            if fused:
                source, target = sources[first : first + n], targets[to : to + n]
                _shift_last(step, y, begun, factors, right, at, source, target)
                continue
            _load(weight, kind, first, n, x)
            _add(step, _ONE, y, x[:n])
            if dithered:
                _store_dithered(x, n, out, out_kind, to, key, address, start + at)
            else:
                _store(x, n, out, out_kind, to)


@_kernel(f"{_MATRIX}, f4, f4, u1[::1], i8, i8, f8[:,::1]")
def update_matrix(
    begin,
    end,
    table,
    key,
    family,
    scales,
    left,
    right,
    coefficient,
    decay,
    weight,
    kind,
    hashed,
    moments,
):
    """``weight = round(decay * weight + coefficient * u)``, a row a run; moments as `update`."""
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x, u = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    total, squares = np.zeros(LANES), np.zeros(LANES)
    exact = kind == FLOAT32
    fused = (exact or (kind == BFLOAT16 and hashed)) and left.shape[1] >= 4
    targets = weight[: weight.size * exact].view(np.float32)
    halves = weight[: weight.size * (kind == BFLOAT16)].view(np.uint16)
    early = left.shape[1] - 4 if fused else left.shape[1]
    begun = scales.shape[1] > 0 or early > 0
    for row in range(begin, end):
        own, length = table[row, BLOCK], table[row, LENGTH]
        address, start = table[row, ADDRESS], table[row, START]
        scale, factors = scales[own], left[own]
        pivot = 0.0
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            d = u[:n]
            _compose(
                key, family, address, start + at, at, scale, factors, right, early, words, z, d
            )
            place = table[row, WEIGHT] + at
            if fused and not exact:
                y, stored, rounding = x[:n], halves[place : place + n], W(key ^ _UPDATED)
                _decay_last_dithered(
                    decay,
                    coefficient,
                    d,
                    begun,
                    factors,
                    right,
                    at,
                    stored,
                    rounding,
                    address,
                    start + at,
                )
            elif fused:
                y = targets[place : place + n]
                _decay_last(decay, coefficient, d, begun, factors, right, at, y)
            else:
                y = x[:n]
                _load(weight, kind, place, n, x)
                _decay(decay, coefficient, _ONE, d, y)
                if kind == FLOAT32:
                    _store(x, n, weight, kind, place)
                else:
                    _store_updated(
                        x, n, weight, kind, place, key, address, start + at, hashed, words
                    )
            if moments.size > 0:
                if kind != FLOAT32:
                    _load(weight, kind, place, n, x)
                pivot = np.float64(y[0]) if at == 0 else pivot
                _accumulate(y, n, pivot, total, squares)
        if moments.size > 0:
            _close(total, squares, length, pivot, moments[row])


@_kernel("i8[:,::1], f4[:,::1], f4[:,::1], u1[::1], i8")
def add_rows(begin, end, table, left, right, out, kind):
    """``out = round(out + left right)``, a row a run, to nearest."""
    x = np.empty(TILE, np.float32)
    for row in range(begin, end):
        own, length = left[table[row, START]], table[row, LENGTH]
        place = table[row, START] * length
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            _load(out, kind, place + at, n, x)
            _products(own, right, at, own.size, True, x[:n])
            _store(x, n, out, kind, place + at)


@_kernel("i8[:,::1], u1[::1], i8, f8[:,::1]")
def measure(begin, end, table, weight, kind, moments):
    """The moments that `update` gives, of weights that have not been updated."""
    x = np.empty(TILE, np.float32)
    total, squares = np.zeros(LANES), np.zeros(LANES)
    for row in range(begin, end):
        length, pivot = table[row, LENGTH], 0.0
        for at in range(0, length, TILE):
            n = min(TILE, length - at)
            _load(weight, kind, table[row, WEIGHT] + at, n, x)
            pivot = np.float64(x[0]) if at == 0 else pivot
            _accumulate(x, n, pivot, total, squares)
        _close(total, squares, length, pivot, moments[row])


@_inline
def _square(x, count, lanes):
    """Adds a tile's squares, in fp64; element i goes to lane i % 256."""
    for at in range(0, count, LANES):
        n = min(LANES, count - at)
        group, sums = x[at : at + n], lanes[:n]
        for lane in range(n):
            d = np.float64(group[lane])
            sums[lane] += d * d


@_inline
def _add_products(z, x, total):
    for i in range(total.size):
        total[i] += z[i] * x[i]


@_kernel("i8[:,::1], u8, i8, u1[::1], i8, f8[::1], f4[:,::1]")
def fold(begin, end, table, key, family, values, kind, squares, folded):
    """A run's sum of squares, and its noise times values, summed by place modulo the columns.

    Without columns in `folded` no noise is made.
    """
    words, z = np.empty(TILE + 128, np.uint32), np.empty(TILE + 256, np.float32)
    x, lanes = np.empty(TILE, np.float32), np.zeros(LANES)
    length = folded.shape[1]
    for row in range(begin, end):
        count, start, total = table[row, LENGTH], table[row, START], folded[row]
        lanes[:] = 0.0
        at = 0
        while at < count:
            n = min(TILE, count - at)
            place = (start + at) % length if length > 0 else 0
            n = min(n, length - place) if length > 0 else n
            _load(values, kind, table[row, WEIGHT] + at, n, x)
            _square(x, n, lanes)
            if length > 0:
                skip = _draw(key, family, table[row, ADDRESS], start + at, n, words, z)
                _add_products(z[skip : skip + n], x[:n], total[place : place + n])
            at += n
        squares[row] = lanes.sum()
