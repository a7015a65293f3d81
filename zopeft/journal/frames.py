"""Frames: how bytes are laid out in a journal file.

A file is a magic of eight bytes and then frames, each
``[length: u32][crc32 of length and payload: u32][payload]``, little-endian. The first
frame holds the header, every other one a step. A frame is written in one call, so a
process that is killed can only leave the last one incomplete.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zopeft.errors import input_error

MAGIC = b"ZOPEFTJ1"
HEAD = struct.Struct("<II")
BEGINNING = struct.Struct("<B4xQ")
"""How the payload of a step begins (`zopeft.journal.codec`): its kind, and its number."""
LAST_KIND, MOST_STEPS = 15, 1 << 40
"""Kinds there may ever be, and steps of a run."""
PIECE = 1 << 20
"""Bytes read at a time while a file is scanned."""


@dataclass(frozen=True)
class Frame:
    """One intact frame of a file.

    Args:
        offset: Where it begins, in bytes from the start of the file.
        payload: Its content.
    """

    offset: int
    payload: bytes

    @property
    def end(self) -> int:
        """Offset of the byte after the frame."""
        return self.offset + HEAD.size + len(self.payload)


@dataclass(frozen=True)
class Torn:
    """An incomplete last frame: what a process leaves that died while writing.

    Args:
        offset: Where it begins; everything before is intact.
        size: Its bytes up to the end of the file.
    """

    offset: int
    size: int


def pack(payload: bytes) -> bytes:
    """Returns the frame of a payload of at least one byte."""
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", _checksum(length, payload)) + payload


def scan(path: Path, start: int = 0) -> Iterator[Frame | Torn]:
    """Walks over the frames of a file; a torn end is the last thing it yields.

    Args:
        path: The file.
        start: Where a frame begins, to walk from there; 0 for the first.

    Yields:
        Each intact `Frame` in order, then at most one `Torn`.

    Raises:
        InputError: The file is not a journal, or a frame is damaged although intact ones
            follow it (the message names the offset).
    """
    with open(path, "rb") as file:
        size = path.stat().st_size
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            if MAGIC.startswith(magic):
                yield Torn(0, size)
                return
            raise input_error(str(path), "is not a journal", magic, "give a journal.bin of zopeft")
        offset = start or len(MAGIC)
        while offset < size:
            file.seek(offset)
            payload = _payload(file.read(HEAD.size), file, size - offset)
            if payload is None:
                _refuse_damage(path, offset)
                yield Torn(offset, size - offset)
                return
            frame = Frame(offset, payload)
            yield frame
            offset = frame.end


def _payload(head: bytes, file: BinaryIO, available: int) -> bytes | None:
    """Reads the payload after a frame's head; None if the frame is not intact."""
    if len(head) < HEAD.size:
        return None
    length, checksum = HEAD.unpack(head)
    if not 0 < length <= available - HEAD.size:
        return None
    payload = file.read(length)
    return payload if _checksum(head[:4], payload) == checksum else None


def _checksum(length: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(length))


def _refuse_damage(path: Path, offset: int) -> None:
    """Raises unless nothing intact follows a broken frame, which makes it a torn end."""
    rest = path.read_bytes()[offset:]
    for start in range(1, len(rest) - HEAD.size):
        length, checksum = HEAD.unpack_from(rest, start)
        end = start + HEAD.size + length
        if length < BEGINNING.size or end > len(rest):
            continue
        # Sums are taken of what begins as a step's record does: all else would take hours.
        kind, step = BEGINNING.unpack_from(rest, start + HEAD.size)
        if not 0 < kind <= LAST_KIND or step >= MOST_STEPS:
            continue
        if _checksum(rest[start : start + 4], rest[start + HEAD.size : end]) == checksum:
            raise input_error(
                str(path),
                f"is damaged at byte {offset}, with intact records after it",
                None,
                "restore the file from a copy, or go on from a checkpoint with the file moved away",
            )
