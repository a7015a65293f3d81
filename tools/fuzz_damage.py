"""Damage: what is done to good bytes and good values, the same for the same random numbers."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any

EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 2**31, 2**63, 10**30, 10**400, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "a" * 300, "１", "2023-13-45", "../../etc/passwd", [], {}, [[]], [None],
    {"": {}}, ["a", 1], {"a": [1, 2]}, [0] * 40, "nan", "-", "=", "{", "{}", "{x", "{0.a}",
    "\udc80",
)  # fmt: skip
"""Values of other kinds, put where a good one was."""
ODD_YAML = (
    "2023-13-45", "&a [*a]", "!!python/name:os.system", "!!binary x", "!!timestamp 1", "1e999",
    "0x", "0b2", "~", "{", "[", "? a", ": :", "*a", "<<: 1", "!!int ''", "!!float x", "- - - -",
    "190:20:30:15", "0x" + "f" * 300, "{<<: *a}", "&a {<<: [*a, *a]}", "!!set {a}", "!!omap [a]",
    "|", ">", "@", "%", "\t", "_", "1_0", "=",
)  # fmt: skip


def bytes_damaged(content: bytes, dice: random.Random) -> bytes:
    """Flips, cuts, doubles or overwrites some places."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        size = len(data)
        at = dice.randrange(size + 1)
        length = min(dice.choice((1, 2, 4, 8, 64, 512)), size - at)
        match dice.randrange(7):
            case 0 if size:
                data[at % size] ^= 1 << dice.randrange(8)
            case 1 if size:
                data[at % size] = dice.choice((0, 1, 0x20, 0x22, 0x7B, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * dice.choice((1, 2, 16))
            case 4:
                data[at:at] = dice.randbytes(length)
            case 5:
                del data[at:]
            case _:
                kind = dice.choice(("<B", "<H", "<I", "<Q"))
                size = struct.calcsize(kind)
                word = struct.pack(kind, dice.choice(EXTREMES) % 2 ** (8 * size))
                data[at : at + size] = word
    return bytes(data)


def value_damaged(value: Any, dice: random.Random) -> Any:
    """Puts something odd in some place of a tree of lists and dicts, or takes a part away."""
    value = json.loads(json.dumps(value))
    for _ in range(dice.choice((1, 1, 2, 3))):
        value = _once(value, dice)
    return value


def odd(dice: random.Random) -> Any:
    """Returns one of `ODD`, a copy: what is damaged next may be inside of it."""
    return deepcopy(dice.choice(ODD))


def _once(value: Any, dice: random.Random) -> Any:
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places or dice.random() < 0.02:
        return odd(dice)
    parent, key = dice.choice(places)
    match dice.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[dice.choice(("", "x", "name", "type", "a.b", str(key) + "s"))] = parent.pop(key)
        case 2:
            parent[key] = [parent[key]] if dice.random() < 0.5 else {"x": parent[key]}
        case 3 if isinstance(parent[key], (int, float)) and abs(parent[key]) < 10**300:
            parent[key] = parent[key] * dice.choice((-1, 2, 1000, 10**18, 0.5))
        case _:
            parent[key] = odd(dice)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the places in a tree: what holds them, and under which key."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, child in pairs:
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)


def json_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages a JSON text as values, or as bytes; some are nested or numbers without an end."""
    match dice.randrange(20):
        case 0:
            return b"[" * dice.choice((50, 5000, 200_000))
        case 1:
            return b'{"a":' * dice.choice((50, 5000, 100_000))
        case 2:
            return b"9" * dice.choice((30, 5000))
        case n if n < 12:
            return json.dumps(value_damaged(json.loads(content), dice)).encode()
        case _:
            return bytes_damaged(content, dice)


@cache
def _yaml_value(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def yaml_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages a YAML text as values, as bytes, or line by line with what YAML reads oddly."""
    import yaml

    text = content.decode()
    match dice.randrange(20):
        case 0:
            return b"[" * dice.choice((50, 500, 2000))
        case 1:
            return b"a: " + b"9" * dice.choice((30, 5000))
        case 2:
            names = "abcdefghij"
            many = [f"a: &a [{', '.join('x' * 9)}]"]
            many += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
            return "\n".join(many).encode()
        case 3:
            times = dice.choice((2, 9, 300))
            many = [f"a: &a {{{', '.join(f'x{n}: 1' for n in range(times))}}}"]
            many += [
                f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in pairwise("abcdef")
            ]
            return "\n".join(many).encode()
        case n if n < 9:
            value = value_damaged(_yaml_value(text), dice)
            return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
        case n if n < 14:
            lines = text.splitlines()
            at = dice.randrange(len(lines))
            head = lines[at].partition(":")[0]
            lines[at] = f"{head}: {dice.choice(ODD_YAML)}"
            return "\n".join(lines).encode()
        case _:
            return bytes_damaged(content, dice)


def tensors_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages a safetensors file: its header as values, or the whole as bytes."""
    if dice.random() < 0.4:
        return bytes_damaged(content, dice)
    length = int.from_bytes(content[:8], "little")
    header = json_damaged(content[8 : 8 + length], dice)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def framed(damage: Callable[[bytes, random.Random], bytes], magic: int) -> Any:
    """Damages one payload of a file of frames, with its length and checksum made right."""

    def damaged(content: bytes, dice: random.Random) -> bytes:
        if dice.random() < 0.2:
            return bytes_damaged(content, dice)
        payloads, at = [], magic
        while at < len(content):
            (length,) = struct.unpack_from("<I", content, at)
            payloads.append(content[at + 8 : at + 8 + length])
            at += 8 + length
        one = 0 if dice.random() < 0.3 else dice.randrange(len(payloads))
        payloads[one] = (json_damaged if one == 0 else damage)(payloads[one], dice)
        parts = [content[:magic]]
        for payload in payloads:
            size = struct.pack("<I", len(payload))
            parts += [size, struct.pack("<I", zlib.crc32(payload, zlib.crc32(size))), payload]
        return b"".join(parts)

    return damaged


def pickle_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages the pickle in an archive, whose checksums are made right, or the whole."""
    if dice.random() < 0.4:
        return bytes_damaged(content, dice)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(
                entry.filename,
                bytes_damaged(data, dice) if entry.filename.endswith(".pkl") else data,
            )
    return made.getvalue()


def lines_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages one line of JSON lines."""
    lines = content.splitlines()
    at = dice.randrange(len(lines))
    lines[at] = json_damaged(lines[at], dice)
    return b"\n".join(lines)


@cache
def _bomb(letter: bytes) -> bytes:
    # A file may be several of them, one after the other.
    return gzip.compress(letter * (1 << 20), mtime=0) * (1 << 7)


def packed_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages a gzip file of JSON lines: a line of it, or the whole; some unpack without an end."""
    if dice.random() < 0.02:
        return _bomb(dice.choice((b"[", b" ", b"\n", b"\0")))
    if dice.random() < 0.4:
        return gzip.compress(lines_damaged(gzip.decompress(content), dice), 1, mtime=0)
    return bytes_damaged(content, dice)


def arrays_damaged(content: bytes, dice: random.Random) -> bytes:
    """Damages one array of an archive of NumPy's, its header or its numbers, or the whole."""
    if dice.random() < 0.2:
        return bytes_damaged(content, dice)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        entries = old.infolist()
        victim = dice.choice(entries).filename
        for entry in entries:
            data = old.read(entry)
            if entry.filename == victim:
                data = _array_damaged(data, dice)
            if entry.filename != victim or dice.random() < 0.9:
                new.writestr(entry.filename, data)
    return made.getvalue()


def _array_damaged(data: bytes, dice: random.Random) -> bytes:
    length = 10 + int.from_bytes(data[8:10], "little")
    if dice.random() < 0.4:
        return data[:length] + bytes_damaged(data[length:], dice)
    head = data[:length]
    shape = dice.choice((b"(1099511627776,)", b"(-1,)", b"(2, 3)", b"()", b"(0,)"))
    kind = dice.choice((b"<i4", b"<f8", b"|O", b"|S9", b"<U4", b"<i8"))
    text = head[10:].strip()
    text = text[: text.index(b"(")] + shape + text[text.index(b")") + 1 :]
    text = (text if dice.random() < 0.5 else text.replace(b"<i4", kind)) + b"\n"
    return head[:8] + len(text).to_bytes(2, "little") + text + data[length:]
