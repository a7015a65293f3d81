"""Codec: a step's record as bytes, and back.

Layout, little-endian: kind u8, flags u8, four array modes packed in u8, number of losses
u8, number of projected gradients u8, step u64, seed u64, eps f64, decay f64, losses f64 *,
projected gradients f64 *, the loss at the weights f64 and that on the first direction's other
side f64 where flags say so, then lr (f64), scales (f32), memory (f32) and the unread blocks
(u8), each as a mode: absent, the same as in the record before, or inline with its shape.
Arrays that stay as they were cost nothing, so a run of MeZO takes about a hundred bytes a step.

A second kind is for steps whose plan asked for other losses beside these, or took notes: behind
the same fixed part stand the number of all losses (u16), which of them is the first of the
step's own (u16) and the number of notes (u8); then all losses (f64 *) in place of the step's
own, the projected gradients, lr and scales, and each note: the length of its name (u8), the
name, its mode (u8) and, where inline, its array (f32).
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from zopeft.optim.record import StepRecord

STEP, PLANNED = 1, 2
"""Kinds of a step's payload; others are left to later versions of the format."""
MORE = struct.Struct("<HHB")
FIXED = struct.Struct("<BBBBBQQdd")
ABSENT, SAME, INLINE = 0, 1, 2
SKIPPED, CENTRE, MIRROR, LOOKED = 1, 2, 4, 8


def encode(record: StepRecord, before: StepRecord | None) -> bytes:
    """Returns the payload of a record.

    Args:
        record: The step's record.
        before: The record of the step before, whose arrays need not be repeated.

    Returns:
        The payload, for `zopeft.journal.frames.pack`.
    """
    planned = bool(record.asked or record.notes)
    arrays = [
        (np.asarray(record.lr, dtype="<f8"), None if before is None else np.asarray(before.lr)),
        (_single(record.scales), None if before is None else _single(before.scales)),
        (_single(record.memory), None if before is None else _single(before.memory)),
        (_missed(record), None if before is None else _missed(before)),
    ]
    looks = ((record.centre, CENTRE), (record.mirror, MIRROR))
    seen = tuple(loss for loss, _ in looks if loss is not None)
    modes = [_mode(now, then) for now, then in arrays]
    fixed = FIXED.pack(
        PLANNED if planned else STEP,
        SKIPPED * record.skipped
        + LOOKED * (record.unread is not None)
        + sum(flag for loss, flag in looks if loss is not None),
        modes[0] | modes[1] << 2 | modes[2] << 4 | modes[3] << 6,
        len(record.losses),
        len(record.projected_grads),
        record.step,
        record.seed,
        record.eps,
        record.decay,
    )
    losses = record.all_losses() if planned else record.losses
    numbers = losses + record.projected_grads + (() if planned else seen)
    parts = [fixed, np.asarray(numbers, dtype="<f8").tobytes()]
    if planned:
        parts.insert(1, MORE.pack(len(losses), record.first, len(record.notes or {})))
    parts += [_inline(now) for mode, (now, _) in zip(modes, arrays, strict=True) if mode == INLINE]
    for name, note in (record.notes or {}).items():
        then = ((before.notes if before is not None else None) or {}).get(name)
        now = _single(note)
        mode = _mode(now, _single(then))
        parts.append(struct.pack("<B", len(name)) + name.encode() + struct.pack("<B", mode))
        parts += [_inline(now)] if mode == INLINE else []
    return b"".join(parts)


def decode(payload: bytes, before: StepRecord | None) -> StepRecord:
    """Returns the record of a payload.

    Args:
        payload: What `encode` gave.
        before: The record of the step before.

    Raises:
        ValueError: The payload is not that of a step.
    """
    try:
        kind, flags, modes, losses, grads, step, seed, eps, decay = FIXED.unpack_from(payload)
        if kind not in (STEP, PLANNED):
            raise ValueError(f"record of unknown kind {kind}")
        at, all_losses, first, count = FIXED.size, losses, 0, 0
        has_centre, has_mirror = bool(flags & CENTRE), bool(flags & MIRROR)
        if kind == PLANNED:
            all_losses, first, count = MORE.unpack_from(payload, at)
            at += MORE.size
        amount = all_losses + grads + (has_centre + has_mirror if kind == STEP else 0)
        numbers = np.frombuffer(payload, "<f8", amount, at).tolist()
        at += 8 * amount
        lr, at = _array(payload, at, modes & 3, "<f8", _before(before, "lr"))
        scales, at = _array(payload, at, modes >> 2 & 3, "<f4", _before(before, "scales"))
        memory, at = _array(payload, at, modes >> 4 & 3, "<f4", _before(before, "memory"))
        unread, at = _array(payload, at, modes >> 6, "<u1", _before(before, "unread"))
        notes, at = _notes(payload, at, count, before)
    except struct.error as error:
        raise ValueError(str(error)) from error
    if lr is not None and lr.ndim != 1:
        raise ValueError("record whose learning rate is no list")
    if at != len(payload) or lr is None:
        raise ValueError(f"record of {len(payload)} bytes where {at} were due")
    seen = numbers[all_losses + grads :]
    if kind == PLANNED:
        last = first + losses
        if last + has_mirror > all_losses or first < has_centre:
            raise ValueError("record whose losses are not among those that it asked for")
        seen = numbers[first - 1 : first] * has_centre + numbers[last : last + 1] * has_mirror
    return StepRecord(
        step=step,
        seed=seed,
        losses=tuple(numbers[first : first + losses]),
        projected_grads=tuple(numbers[all_losses : all_losses + grads]),
        lr=tuple(np.asarray(lr).tolist()),
        eps=eps,
        decay=decay,
        scales=None if scales is None else scales.astype(np.float32, copy=False),
        memory=None if memory is None else memory.astype(np.float32, copy=False),
        skipped=bool(flags & SKIPPED),
        centre=seen[0] if has_centre else None,
        mirror=seen[-1] if has_mirror else None,
        asked=tuple(numbers[:all_losses]) if kind == PLANNED else (),
        first=first,
        notes=notes,
        unread=_looked(unread) if flags & LOOKED else None,
    )


def stands_alone(payload: bytes) -> bool:
    """Whether a payload can be decoded without the record before."""
    try:
        decode(payload, None)
    except ValueError:
        return False
    return True


def _inline(array: NDArray | None) -> bytes:
    assert array is not None
    return struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape) + array.tobytes()


def _notes(
    payload: bytes, at: int, count: int, before: StepRecord | None
) -> tuple[dict[str, NDArray[np.float32]] | None, int]:
    found: dict[str, NDArray[np.float32]] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<B", payload, at)
        name = payload[at + 1 : at + 1 + length].decode()
        (mode,) = struct.unpack_from("<B", payload, at + 1 + length)
        then = ((before.notes if before is not None else None) or {}).get(name)
        array, at = _array(payload, at + 2 + length, mode, "<f4", then)
        if array is None:
            raise ValueError(f"record whose note {name!r} is absent")
        found[name] = array.astype(np.float32, copy=False)
    return found or None, at


def _missed(record: StepRecord) -> NDArray[np.uint8] | None:
    # Nothing is written where everything was read, as in most runs.
    return None if record.unread is None or not record.unread.size else record.unread


def _looked(array: NDArray | None) -> NDArray[np.uint8]:
    return np.zeros(0, dtype=np.uint8) if array is None else array.astype(np.uint8, copy=False)


def _single(array: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if array is None else np.ascontiguousarray(array, dtype="<f4")


def _mode(now: NDArray | None, then: NDArray | None) -> int:
    if now is None:
        return ABSENT
    # Compared as bytes: NaN equals itself here, and -0 does not equal 0.
    same = then is not None and now.shape == then.shape and now.tobytes() == then.tobytes()
    return SAME if same else INLINE


def _before(before: StepRecord | None, name: str) -> NDArray | None:
    value = getattr(before, name, None)
    return None if value is None else np.asarray(value)


def _array(
    payload: bytes, at: int, mode: int, dtype: str, before: NDArray | None
) -> tuple[NDArray | None, int]:
    """Reads one array; returns it and the offset after it."""
    if mode == ABSENT:
        return None, at
    if mode == SAME:
        if before is None:
            raise ValueError("record refers to one that is not there")
        return before, at
    (dimensions,) = struct.unpack_from("<B", payload, at)
    shape = struct.unpack_from(f"<{dimensions}I", payload, at + 1)
    at += 1 + 4 * dimensions
    count = int(np.prod(shape, dtype=np.int64))
    array = np.frombuffer(payload, dtype, count, at).reshape(shape)
    return array, at + array.nbytes
