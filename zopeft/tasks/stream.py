"""Stream: examples of rows that are read, and encoded, as they are needed.

The order is the same for a seed: each file or data set is gone through again and again, every row
once a pass, in an order drawn from a buffer of rows that are held; parts of a mixture take turns by
their weights. So the example at a place is known by its number alone, and who wants one further on
has the rows before it read, and not encoded.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from zopeft.errors import InputError, input_error
from zopeft.tasks.row_files import Placed
from zopeft.tasks.streamed import Streamed, Streaming, Streams


class StreamedRowError(InputError):
    """A row that cannot be read or encoded, met while a run goes on."""


class OneRow(list[dict[str, Any]]):
    """One row, as rows that know where they stand."""

    def __init__(self, one: Placed) -> None:
        super().__init__([one.row])
        self._place = one.place

    def place(self, index: int) -> str:
        """Returns where the row stands, for messages."""
        return self._place


def as_needed(head: Any, rows: Any, encode: Callable[[OneRow], Any]) -> Any:
    """Returns examples of rows, which are the head's where they are not streamed.

    Args:
        head: The rows that are held, encoded.
        rows: The same rows, as `zopeft.tasks.load_rows` gives them.
        encode: Makes a data set of a row, as `head` was made.
    """
    streams = getattr(rows, "streams", None)
    return head if streams is None else TaskStream(streams, head, lambda row: encode(row).encoded)


class TaskStream(IterableDataset[Any]):
    """Examples of rows that are read as they are needed, without end.

    A `zopeft.ZOTrainer` takes it and needs ``max_steps``; ``for example in stream`` goes on until
    it is left. With workers, each makes its share.

    Args:
        streams: What is read, and how.
        head: The first rows, encoded: what has to look at examples before looks at these.
        encode: Returns the examples of a row.
    """

    def __init__(
        self, streams: Streams, head: Any, encode: Callable[[OneRow], Sequence[Any]]
    ) -> None:
        self.streams, self.head, self.encode = streams, head, encode

    @property
    def encoded(self) -> Sequence[Any]:
        """The examples of the first rows."""
        found: Sequence[Any] = self.head.encoded
        return found

    @property
    def mark(self) -> str:
        """What tells this stream from others: its settings, and how it begins."""
        return self.streams.mark(map(repr, self.encoded[:100]))

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        cursor = Cursor(self)
        at = first
        while True:
            yield cursor.at(at)
            at += step

    def view(self, count: int) -> StreamView:
        """Returns its first examples as a data set with a length."""
        return StreamView(self, count)


class StreamView(Dataset[Any]):
    """The first examples of a stream by number, to be asked for in order.

    Args:
        stream: The stream.
        count: How many there are.

    Attributes:
        unread: So many of the first are not looked at by whoever asks for them: an example of the
            head stands in for each.
    """

    def __init__(self, stream: TaskStream, count: int) -> None:
        self.stream, self.count, self.unread = stream, count, 0
        self._cursor = Cursor(stream)

    @property
    def head(self) -> Any:
        """The first rows, encoded."""
        return self.stream.head

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.head[0] if index < self.unread else self._cursor.at(index)


class Cursor:
    """A place in a stream, that goes forward, and back to the beginning alone.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: TaskStream) -> None:
        self.stream = stream
        self._begin()

    def _begin(self) -> None:
        parts, how = self.stream.streams.parts, self.stream.streams.how
        each = how.shared(len(parts))
        encode = self.stream.encode
        self._parts = [_PartCursor(part, each, n, encode) for n, part in enumerate(parts)]
        self._taken = [0] * len(parts)
        self._next = 0

    def at(self, index: int) -> Any:
        """Returns the example of a number; rows before it are read and passed over.

        Raises:
            StreamedRowError: A row cannot be read, or the example's not be encoded.
        """
        if index < self._next:
            self._begin()
        try:
            self._pass_over(index - self._next)
            self._next = index + 1
            return self._parts[self._turn()].take()
        except InputError as error:
            self._begin()
            raise StreamedRowError(str(error)) from error

    def _pass_over(self, count: int) -> None:
        if len(self._parts) == 1:
            self._parts[0].skip(count)
            return
        before = list(self._taken)
        for _ in range(count):
            self._turn()
        for part, then, now in zip(self._parts, before, self._taken, strict=True):
            part.skip(now - then)

    def _turn(self) -> int:
        """The part whose turn it is: the one that is furthest below its share."""
        if len(self._parts) == 1:
            return 0
        due = sum(self._taken) + 1
        behind = [
            one.share * due - taken
            for one, taken in zip(self.stream.streams.parts, self._taken, strict=True)
        ]
        turn = max(range(len(behind)), key=behind.__getitem__)
        self._taken[turn] += 1
        return turn


class _PartCursor:
    """A place in one part: its pass, the rows held of it, and pieces of the row in hand."""

    def __init__(
        self,
        part: Streamed,
        how: Streaming,
        number: int,
        encode: Callable[[OneRow], Sequence[Any]],
    ) -> None:
        self.part, self.how, self.number, self.encode = part, how, number, encode
        self.length: int | None = None
        self._ready: deque[Any] = deque()
        self._enter(0)

    def _enter(self, number: int) -> None:
        self.pass_number, self.seen = number, 0
        seed = f"{self.how.seed} {self.number} {number}"
        self._rows = drawn(self.part.rows(), self.how.buffer, seed)

    def _row(self) -> Placed:
        """The next row, of the next pass where this one is over."""
        for _ in range(2):
            row = next(self._rows, None)
            if row is not None:
                return row
            if not self.seen:
                break
            self.length = self.seen
            self._enter(self.pass_number + 1)
        do = "give a file with more rows, or --validation FILE"
        raise input_error(self.part.name, "no rows to train on", do=do)

    def take(self) -> Any:
        """Returns the next example."""
        while not self._ready:
            self._ready.extend(self.encode(OneRow(self._row())))
        self.seen += 1
        return self._ready.popleft()

    def skip(self, count: int) -> None:
        """Passes over examples: whole passes unread, once it is known how long one is."""
        while count:
            whole = self.length or 0
            if whole <= count and whole and self.seen in (0, whole) and not self._ready:
                passes, count = divmod(count, whole)
                self._enter(self.pass_number + passes + (self.seen == whole))
            elif self._ready or self.part.pieces:
                self.take()
                count -= 1
            else:
                self._row()
                self.seen += 1
                count -= 1


def drawn(rows: Iterable[Placed], size: int, seed: str) -> Iterator[Placed]:
    """Yields rows in an order that is drawn from a buffer of them.

    Args:
        rows: The rows.
        size: Rows that are held; 1 leaves their order as it is.
        seed: Seed of the draws.
    """
    generator, held = random.Random(seed), []
    for row in rows:
        held.append(row)
        if len(held) >= size:
            yield _out(held, generator)
    while held:
        yield _out(held, generator)


def _out(held: list[Placed], generator: random.Random) -> Placed:
    at = generator.randrange(len(held))
    held[at], held[-1] = held[-1], held[at]
    return held.pop()
