"""Tables of runs: which elements a kernel is to work on, and where their noise is addressed.

A run is a stretch of consecutive elements of one tensor that belong to one block. Its row
says where it lies in the weights and in the output, how long it is, and its address: the
tensor's 32-bit address and the index of its first element in the whole tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
Run = tuple[int, int, int, int, int, int]

WEIGHT, OUT, LENGTH, START, ADDRESS, BLOCK = range(6)
"""Columns of a table."""
PIECE = 1 << 16
"""Elements a run is cut at, counted from its own start: threads share out whole pieces,
and a block's moments are summed piece by piece, so that no number depends on threads."""
FINE = 1 << 13
"""Elements a piece where no moments are taken: the last piece is what a thread waits for."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies where in a flat buffer of many tensors.

    Args:
        table: The runs [n, 6], in the order of the buffer, each cut into pieces; padding
            belongs to none.
        tensors: Address and padded length of each tensor, in the order of the buffer.
        blocks: The blocks' indices, ascending.
        size: Elements of the buffer.
    """

    table: Table
    tensors: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]
    size: int


def cut(rows: list[Run], piece: int = PIECE) -> Table:
    """Returns the table [n, 6] of some runs, cut into pieces.

    Args:
        rows: A run each, its six numbers in the order of the columns.
        piece: Elements a piece.
    """
    given = np.array(rows, dtype=np.int64).reshape(-1, 6)
    counts = -(-given[:, LENGTH] // piece)
    table = np.repeat(given, counts, axis=0)
    at = np.arange(len(table)) - np.repeat(counts.cumsum() - counts, counts)
    at *= piece
    for column in (WEIGHT, OUT, START):
        table[:, column] += at
    table[:, LENGTH] = np.minimum(piece, table[:, LENGTH] - at)
    return table


@lru_cache(maxsize=1024)
def whole(address: int, start: int, count: int, piece: int = PIECE) -> Table:
    """Returns the table of one run that fills weights and output from their beginning."""
    return cut([(0, 0, count, start, address, 0)], piece)


@lru_cache(maxsize=4)
def of_blocks(blocks: tuple[tuple[int, int], ...]) -> Table:
    """Returns the table of some whole blocks, each with its number in the place of its index.

    Args:
        blocks: Address and elements of each.
    """
    rows = [(0, 0, count, 0, address, n) for n, (address, count) in enumerate(blocks)]
    return cut(rows, FINE)


def of_rows(rows: npt.NDArray[np.int64], width: int, address: int) -> Table:
    """Returns the table [n, 6] of some rows of a matrix, put one below the other.

    Args:
        rows: Row numbers, [n].
        width: Elements a row.
        address: 32-bit address of the matrix.
    """
    table = np.zeros((len(rows), 6), dtype=np.int64)
    table[:, WEIGHT] = table[:, START] = rows * width
    table[:, OUT] = np.arange(len(rows)) * width
    table[:, LENGTH], table[:, ADDRESS] = width, address
    return table


def of_stretches(
    rows: npt.NDArray[np.int64], columns: tuple[int, int], width: int, address: int
) -> Table:
    """Returns the table of some rows' columns, put one below the other in weights and output.

    Rows that follow each other and are whole are one run.

    Args:
        rows: Row numbers in the whole matrix, [n].
        columns: First and last (exclusive) column.
        width: Elements a row of the whole matrix.
        address: 32-bit address of the matrix.
    """
    first, count = columns[0], columns[1] - columns[0]
    if len(rows) * count == 0:
        return cut([])
    if len(rows) == 1 or (count == width and bool((np.diff(rows) == 1).all())):
        return cut([(0, 0, len(rows) * count, int(rows[0]) * width + first, address, 0)])
    table = np.zeros((len(rows), 6), dtype=np.int64)
    table[:, WEIGHT] = table[:, OUT] = np.arange(len(rows)) * count
    table[:, START] = rows * width + first
    table[:, LENGTH], table[:, ADDRESS] = count, address
    return table


def spread(table: Table, column: int) -> npt.NDArray[np.int64]:
    """Returns the place of each element of a table's runs, counted on from a column.

    Args:
        table: The runs, [n, 6].
        column: WEIGHT, OUT or START.
    """
    lengths = table[:, LENGTH]
    begins = lengths.cumsum() - lengths
    found: npt.NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(
        table[:, column] - begins, lengths
    )
    return found


@lru_cache(maxsize=16)
def of_all_rows(rows: int, width: int) -> Table:
    """Returns the table of a matrix's rows, each a run whose START is the row's number."""
    table = np.zeros((rows, 6), dtype=np.int64)
    table[:, START], table[:, LENGTH] = np.arange(rows), width
    return table


def bounds(table: Table, parts: int) -> npt.NDArray[np.int64]:
    """Cuts a table into at most `parts` parts of about as many elements each.

    Returns:
        int64 [parts + 1]: where each begins, and where the last ends.
    """
    ends = table[:, LENGTH].cumsum()
    goals = ends[-1] * np.arange(1, parts) / parts
    cuts = np.unique(np.concatenate(([0], np.searchsorted(ends, goals) + 1, [len(table)])))
    return cuts.astype(np.int64)


def shares(table: Table, parts: int) -> list[slice]:
    """Does `bounds` in slices."""
    cuts = bounds(table, parts).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]
