"""Codec: a step's record as bytes, and back.

Layout, little-endian: kind u8, flags u8, four array modes packed in u8, number of losses
u8, number of projected gradients u8, step u64, seed u64, eps f64, decay f64, losses f64 *,
projected gradients f64 *, the loss at the weights f64 and that on the first direction's other
side f64 where flags say so, then lr (f64), scales (f32), memory (f32) and the unread blocks
(u8), each as a mode: absent, the same as in the record before, or inline with its shape.
Arrays that stay as they were cost nothing, so a run of MeZO takes about a hundred bytes a step.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from zopeft.methods.record import StepRecord

STEP = 1
"""Kind of a step's payload; other kinds are left to later versions of the format."""
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
    arrays = (
        (np.asarray(record.lr, dtype="<f8"), None if before is None else np.asarray(before.lr)),
        (_single(record.scales), None if before is None else _single(before.scales)),
        (_single(record.memory), None if before is None else _single(before.memory)),
        (_missed(record), None if before is None else _missed(before)),
    )
    looks = ((record.centre, CENTRE), (record.mirror, MIRROR))
    seen = tuple(loss for loss, _ in looks if loss is not None)
    modes = [_mode(now, then) for now, then in arrays]
    parts = [
        FIXED.pack(
            STEP,
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
        ),
        np.asarray(record.losses + record.projected_grads + seen, dtype="<f8").tobytes(),
    ]
    for mode, (now, _) in zip(modes, arrays, strict=True):
        if mode == INLINE and now is not None:
            parts.append(struct.pack(f"<B{now.ndim}I", now.ndim, *now.shape) + now.tobytes())
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
        if kind != STEP:
            raise ValueError(f"record of unknown kind {kind}")
        at = FIXED.size
        count = losses + grads + bool(flags & CENTRE) + bool(flags & MIRROR)
        numbers = np.frombuffer(payload, "<f8", count, at).tolist()
        at += 8 * count
        lr, at = _array(payload, at, modes & 3, "<f8", _before(before, "lr"))
        scales, at = _array(payload, at, modes >> 2 & 3, "<f4", _before(before, "scales"))
        memory, at = _array(payload, at, modes >> 4 & 3, "<f4", _before(before, "memory"))
        unread, at = _array(payload, at, modes >> 6, "<u1", _before(before, "unread"))
    except struct.error as error:
        raise ValueError(str(error)) from error
    if at != len(payload) or lr is None:
        raise ValueError(f"record of {len(payload)} bytes where {at} were due")
    return StepRecord(
        step=step,
        seed=seed,
        losses=tuple(numbers[:losses]),
        projected_grads=tuple(numbers[losses : losses + grads]),
        lr=tuple(np.asarray(lr).tolist()),
        eps=eps,
        decay=decay,
        scales=None if scales is None else scales.astype(np.float32, copy=False),
        memory=None if memory is None else memory.astype(np.float32, copy=False),
        skipped=bool(flags & SKIPPED),
        centre=numbers[losses + grads] if flags & CENTRE else None,
        mirror=numbers[-1] if flags & MIRROR else None,
        unread=_looked(unread) if flags & LOOKED else None,
    )


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
