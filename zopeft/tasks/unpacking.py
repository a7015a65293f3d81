"""Unpacking: gzip files, of which some kilobytes can hold gigabytes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

from zopeft.errors import input_error

FREE, FACTOR = 1 << 26, 250
"""Bytes that any file may unpack to, and how many times its own size; text packs to a tenth."""

ROWS, ROWS_A_BYTE = 1_000_000, 100
"""Rows that any parquet file may hold, and how many a byte of it; texts take bytes a row."""


def check_rows(path: Path, count: int) -> None:
    """Refuses a file that tells of more rows than it can have text for.

    Args:
        path: The file.
        count: The rows that it tells of.

    Raises:
        InputError: There are more than `ROWS` and `ROWS_A_BYTE` allow.
    """
    size = path.stat().st_size
    if count > max(ROWS, ROWS_A_BYTE * size):
        what = f"holds {count} rows in {size} bytes, which are empty or all the same"
        raise input_error(str(path), what, do="take a part of them")


class _Unpacked(io.RawIOBase):
    """What is in a gzip file, up to a multiple of its size."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, gzip.open(path)  # noqa: SIM115 - close() closes it
        self._most = max(FREE, FACTOR * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, room: Any) -> int:
        found = self._file.readinto(room)
        if self._file.tell() > self._most:
            what = f"unpacks to more than {self._most} bytes, {FACTOR} times its size"
            raise input_error(str(self._path), what, do="unpack it yourself")
        return found

    def close(self) -> None:
        self._file.close()
        super().close()


def unpacked(path: Path) -> io.BufferedReader:
    """Returns a gzip file open for reading.

    What it reads raises an `InputError` where it goes beyond `FREE` and `FACTOR`.
    """
    return io.BufferedReader(_Unpacked(path))
