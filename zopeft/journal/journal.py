"""A journal file: append-only, checksummed, read back record by record."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from zopeft.errors import input_error
from zopeft.journal import codec, frames
from zopeft.journal.header import JournalHeader
from zopeft.optim.record import StepRecord

logger = logging.getLogger(__name__)
ALONE = 1000
"""Every so many records one repeats nothing of that before, so that reading can begin there."""


class Journal:
    """The steps of one run, in order, without gaps.

    Made by `create` or `open`. Every `append` reaches the operating system at once, so a
    killed process loses nothing; the disk is waited for every `sync_steps` steps, at
    `sync` and at `close`.

    Args:
        path: The file.
        header: What the file belongs to.
        sync_steps: Steps between two waits for the disk.
    """

    def __init__(self, path: Path, header: JournalHeader, sync_steps: int = 100) -> None:
        self.path = path
        self.header = header
        self.sync_steps = sync_steps
        self._file: BinaryIO | None = None
        self._ends = array("Q")
        self._alone: dict[int, int] = {}
        self._first = 0
        self._begin = 0
        self._last: StepRecord | None = None
        self._unsynced = 0

    @classmethod
    def create(
        cls, path: str | Path, header: JournalHeader, overwrite: bool = False, sync_steps: int = 100
    ) -> Journal:
        """Starts a new journal, ready for `append`.

        Args:
            path: The file to write.
            header: What it belongs to.
            overwrite: Whether a file that is there may be replaced.
            sync_steps: Steps between two waits for the disk.

        Raises:
            InputError: The file is there already.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise input_error(str(path), "is there already", None, "resume the run or overwrite it")
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = cls(path, header, sync_steps)
        beginning = frames.MAGIC + frames.pack(header.to_bytes())
        staged = path.with_name(path.name + ".new")
        with open(staged, "wb") as file:
            file.write(beginning)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
        journal._begin = len(beginning)
        journal._file = open(path, "ab", buffering=0)  # noqa: SIM115 - close() closes it
        return journal

    @classmethod
    def open(cls, path: str | Path, writable: bool = False, sync_steps: int = 100) -> Journal:
        """Opens a journal and reads it through once.

        Args:
            path: The file.
            writable: Whether `append` and `truncate` will be called. A torn last record is
                then cut off the file (a reader just leaves it out), and the log says so.
            sync_steps: Steps between two waits for the disk.

        Raises:
            InputError: The file is missing, not a journal, or damaged before its end.
        """
        path = Path(path)
        if not path.is_file():
            raise input_error(str(path), "there is no such journal", None, "check the folder")
        header, journal, torn = None, None, None
        for frame in frames.scan(path):
            if isinstance(frame, frames.Torn):
                torn = frame
            elif header is None or journal is None:
                header = JournalHeader.from_bytes(frame.payload, str(path))
                journal = cls(path, header, sync_steps)
                journal._begin = frame.end
            else:
                journal._take(frame)
        if journal is None:
            raise input_error(str(path), "breaks off inside its header", None, "start anew")
        if torn is not None:
            logger.warning(
                "%s: dropped a torn last record, %d bytes at byte %d", path, torn.size, torn.offset
            )
        if writable:
            journal._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - close() closes it
            journal._cut(journal._end)
        return journal

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else self._begin

    def _take(self, frame: frames.Frame) -> None:
        record = self._decode(frame, self._last)
        if self._ends and record.step != self.next_step:
            raise input_error(
                str(self.path),
                f"has step {record.step} at byte {frame.offset} where {self.next_step} was due",
                None,
                "restore the file from a copy",
            )
        if not self._ends:
            self._first = record.step
        if len(self._ends) % ALONE == 0 and codec.stands_alone(frame.payload):
            self._alone[len(self._ends)] = frame.offset
        self._ends.append(frame.end)
        self._last = record

    def _decode(self, frame: frames.Frame, before: StepRecord | None) -> StepRecord:
        try:
            return codec.decode(frame.payload, before)
        except ValueError as error:
            where = f"has an unreadable record at byte {frame.offset}"
            raise input_error(str(self.path), where, str(error)) from error

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def first_step(self) -> int:
        """Number of the first step held (0 unless the run began from a checkpoint)."""
        return self._first

    @property
    def next_step(self) -> int:
        """Number of the step after the last one held; `first_step` if there is none."""
        return self._first + len(self._ends)

    def records(self, start: int = 0) -> Iterator[StepRecord]:
        """Reads the records of the steps from `start` on, in order."""
        before: StepRecord | None = None
        first = max((n for n in self._alone if n <= start - self._first), default=0)
        place = self._alone.get(first, self._begin)
        for number, frame in enumerate(frames.scan(self.path, place), first):
            if isinstance(frame, frames.Torn) or number >= len(self._ends):
                return
            before = self._decode(frame, before)
            if before.step >= start:
                yield before

    def append(self, record: StepRecord) -> None:
        """Writes the record of the next step.

        Args:
            record: Its step must be `next_step`; the first record of an empty journal may
                have any.

        Raises:
            ValueError: The journal is not open for writing, or another step is due.
        """
        if self._file is None:
            raise ValueError(f"{self.path} is not open for writing")
        if self._ends and record.step != self.next_step:
            raise ValueError(f"step {self.next_step} is due in {self.path}, got {record.step}")
        if not self._ends:
            self._first = record.step
        alone = len(self._ends) % ALONE == 0
        frame = frames.pack(codec.encode(record, None if alone else self._last))
        self._file.write(frame)
        if alone:
            self._alone[len(self._ends)] = self._end
        self._ends.append(self._end + len(frame))
        self._last = record
        self._unsynced += 1
        if self._unsynced >= self.sync_steps:
            self.sync()

    def truncate(self, step: int) -> None:
        """Drops the records of `step` and all later ones, so that they can be written anew."""
        if self._file is None:
            raise ValueError(f"{self.path} is not open for writing")
        keep = max(0, step - self._first)
        if keep >= len(self._ends):
            return
        del self._ends[keep:]
        self._alone = {n: place for n, place in self._alone.items() if n < keep}
        self._cut(self._end)
        self._last = None
        for record in self.records(self.next_step - 1):
            self._last = record

    def _cut(self, end: int) -> None:
        assert self._file is not None
        self._file.truncate(end)
        self._file.seek(end)

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def close(self) -> None:
        """Waits for the disk and closes the file; may be called twice."""
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
