"""Encoded examples, kept from one run to the next: the same text is not tokenised twice.

What is kept is found by what it was made of: the examples' text, the tokenizer, the lengths and
this package's own way of encoding. A change in any of them is another file, so nothing kept is ever
stale. A folder that cannot be written or a damaged file costs the time of encoding anew, and
nothing else.

The folder is ``zopeft/encoded`` in the user's cache (``XDG_CACHE_HOME``, ``~/.cache``), or what the
environment variable ``ZOPEFT_CACHE`` names; where that is empty, nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zopeft.staging import staged
from zopeft.tasks.encoding import Encoded
from zopeft.tasks.task import AnyExample

LARGE = 5000
"""Examples from which on keeping them saves more than a blink."""
ROOM = 2 << 30
"""Bytes that all kept files may take; the ones that were used longest ago go first."""
VARIABLE = "ZOPEFT_CACHE"
SOURCES = ("chat", "encoding", "fitting", "marking", "own_encoding", "template")
"""This package's files that say how text becomes tokens."""
# What a file says of its arrays' sizes may be more than there is memory for.
UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, MemoryError),
    # An archive may ask for a password, or for a way of packing that is not known.
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)
Found = tuple[list[Encoded], list[int]]
Numbers = npt.NDArray[np.int32]


def folder() -> Path | None:
    """Returns the folder of kept files; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with suppress(RuntimeError):
        return Path(caches).expanduser() / "zopeft" / "encoded"
    return None


class EncodingCache:
    """The place of some encoded examples.

    Args:
        tokenizer: The tokenizer; of one that cannot be told from others nothing is kept.
        examples: What is encoded; few are encoded faster than they are found.
        settings: What else the result depends on.
    """

    def __init__(self, tokenizer: Any, examples: Sequence[AnyExample], *settings: object) -> None:
        self.file: Path | None = None
        place = folder() if len(examples) >= LARGE else None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if place is None or backend is None:
            return
        about = (backend.to_str(), repr(tokenizer.special_tokens_map), settings)
        template = getattr(tokenizer, "chat_template", None)
        digest = hashlib.blake2b(repr((_way(), *about, template)).encode(), digest_size=16)
        for example in examples:
            digest.update(repr(example).encode(errors="surrogatepass"))
        self.file = place / f"{digest.hexdigest()}.npz"

    def read(self) -> Found | None:
        """Returns the examples and the index of the row of each; None where none are kept."""
        if self.file is None:
            return None
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                found = _unpacked(**{name: arrays[name] for name in arrays.files})
            os.utime(self.file)
        except FileNotFoundError:
            return None
        except (*UNREADABLE, TypeError):
            return None
        return found

    def write(self, encoded: Sequence[Encoded], owners: Sequence[int]) -> None:
        """Keeps examples, where that can be done."""
        if self.file is None:
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with staged(self.file) as place:
                np.savez(place, **_packed(encoded, owners))
            _make_room(self.file.parent)


def _way() -> str:
    """Returns what tells this way of encoding from others."""
    import tokenizers

    here = Path(__file__).parent
    own = b"".join((here / f"{name}.py").read_bytes() for name in SOURCES)
    return f"{tokenizers.__version__} {hashlib.blake2b(own, digest_size=16).hexdigest()}"


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, np.int32)


def _packed(encoded: Sequence[Encoded], owners: Sequence[int]) -> dict[str, Any]:
    """Returns examples as flat arrays: each one's prompts and then its options, end to end."""
    pieces = [ids for one in encoded for ids in (*one.prompts, *one.options)]
    marks = [one.taught or () for one in encoded]
    return {
        "tokens": _numbers(chain.from_iterable(pieces)),
        "sizes": _numbers(map(len, pieces)),
        "options": _numbers(len(one.options) for one in encoded),
        "labels": _numbers(-1 if one.label is None else one.label for one in encoded),
        "taught": _numbers(chain.from_iterable(marks)),
        "marked": _numbers(-1 if one.taught is None else len(one.taught) for one in encoded),
        "cut": _numbers(one.cut for one in encoded),
        "owners": _numbers(owners),
    }


def _unpacked(
    tokens: Numbers,
    sizes: Numbers,
    options: Numbers,
    labels: Numbers,
    taught: Numbers,
    marked: Numbers,
    cut: Numbers,
    owners: Numbers,
) -> Found:
    """Undoes `_packed`.

    Raises:
        ValueError: The arrays do not fit each other.
    """
    lengths = {len(own) for own in (options, labels, marked, cut, owners)}
    whole = int(sizes.sum()) == len(tokens) and 2 * int(options.sum()) == len(sizes)
    if len(lengths) != 1 or not whole or int(marked.clip(min=0).sum()) != len(taught):
        raise ValueError("not what was kept")
    words, flags = tokens.tolist(), [bool(mark) for mark in taught.tolist()]
    pieces, at = [], 0
    for size in sizes.tolist():
        pieces.append(tuple(words[at : at + size]))
        at += size
    encoded, piece, flag = [], 0, 0
    rows = zip(options.tolist(), labels.tolist(), marked.tolist(), cut.tolist(), strict=True)
    for count, label, marks, lost in rows:
        prompts = tuple(pieces[piece : piece + count])
        own = tuple(pieces[piece + count : piece + 2 * count])
        shown = None if marks < 0 else tuple(flags[flag : flag + marks])
        encoded.append(Encoded(prompts, own, None if label < 0 else label, shown, lost))
        piece, flag = piece + 2 * count, flag + max(marks, 0)
    return encoded, owners.tolist()


def _make_room(place: Path) -> None:
    """Removes the files that were used longest ago, until the others take no more than `ROOM`."""
    files = [(file.stat().st_mtime, file.stat().st_size, file) for file in place.glob("*.npz")]
    room = ROOM
    for _, size, file in sorted(files, reverse=True):
        room -= size
        if room < 0:
            file.unlink(missing_ok=True)
