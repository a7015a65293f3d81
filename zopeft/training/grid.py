"""The grid of a run's processes: who runs which rows of the batch, and which probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from zopeft.engine.direction import Probe
from zopeft.optim.looks import Tangent, Watched
from zopeft.probing.groups import Group

PARALLEL = ("rows", "probes", "both")
"""What the processes of a run share out, by name."""


@dataclass(frozen=True)
class Grid:
    """Processes in rows and columns: a row has a part of the batch, a column a part of the probes.

    Args:
        rows: Parts of the batch.
        columns: Parts of the probes.
        line: What the user is told of it; "" for nothing.
    """

    rows: int = 1
    columns: int = 1
    line: str = ""

    def place(self, number: int) -> tuple[int, int]:
        """Returns the row and the column of a process; -1 for one that has nothing to do."""
        if number >= self.rows * self.columns:
            return -1, -1
        return number // self.columns, number % self.columns

    @property
    def told(self) -> str:
        """What is shared out, in a line; "" for one process."""
        count = self.rows * self.columns
        if count == 1:
            return ""
        parts = []
        if self.columns > 1:
            parts.append(f"{self.columns} share out the probes of a batch")
        if self.rows > 1:
            each = f", {self.columns} each," if self.columns > 1 else ""
            parts.append(f"{self.rows} batches{each} make a step")
        line = f"; {self.line}" if self.line else ""
        return f"ranks: {count}, {' and '.join(parts)}{line}"

    def first_column(self, every: Tensor) -> Tensor:
        """Returns what the processes of the first column gave, [rows, ...], of what all gave."""
        return every[: self.rows * self.columns : self.columns]


def grid_of(parallel: str, count: int, probes: int, begun: int | None = None) -> Grid:
    """Returns how processes share the work of a step.

    Args:
        parallel: A name of `PARALLEL`.
        count: The processes.
        probes: Probes of a usual step.
        begun: Parts of the batch that a run which is gone on with began with; None for a new run.
    """
    if parallel == "rows" or count == 1:
        return Grid(count, 1, _other(count, begun))
    if parallel == "probes":
        if begun is not None and begun > 1:
            return Grid(count, 1, _other(count, begun))
        if count <= probes:
            return Grid(1, count)
        idle = f"{count} ranks for the {probes} probes of a step"
        if begun is None:
            do = "more directions use more ranks, parallel both shares out rows and probes"
            return Grid(count, 1, f"{idle}: rows of the batch are shared out instead ({do})")
        # The run's batches are to stay what they were.
        return Grid(1, count, f"{idle}: {count - probes} have nothing to do")
    columns = max(n for n in range(1, count + 1) if count % n == 0 and n <= probes)
    return Grid(count // columns, columns, _other(count // columns, begun))


def _other(rows: int, begun: int | None) -> str:
    """Says that batches have another size from now on, where they have."""
    if begun is None or begun == rows:
        return ""
    return f"the rows of a step come from {rows} ranks from now on, not from {begun}"


def dealt(probes: Sequence[Probe], columns: int) -> list[list[int]]:
    """Deals the probes of a round out to columns.

    What belongs together is dealt together: the groups of a batch at one step. What no process
    can do for another, slopes and looks at activations, all of them do.

    Args:
        probes: The probes, [P].
        columns: Who takes part.

    Returns:
        The numbers of the probes of each column, [columns], in the order of the probes.
    """
    if any(isinstance(probe, Tangent) for probe in probes):
        return [list(range(len(probes)))] * columns
    found: list[list[int]] = [[] for _ in range(columns)]
    turn = at = 0
    while at < len(probes):
        probe = probes[at]
        size = probe.groups if isinstance(probe, Group) else 1
        numbers = list(range(at, at + size))
        if isinstance(probe, Watched) and probe.watch is not None:
            for own in found:
                own += numbers
        else:
            found[turn % columns] += numbers
            turn += 1
        at += size
    return found
