"""What a bench says of itself: before its first run, and of each model, task and space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zopeft.jobs.beginning import model_lines
from zopeft.jobs.bench.cells import Cell
from zopeft.jobs.bench.contest import Contender
from zopeft.report.rows import Row

if TYPE_CHECKING:
    from zopeft.jobs.bench.body import Body

SHOWN = 8
"""Names of a line; of more, their number is told."""


def begin_lines(contenders: Sequence[Contender], rows: Sequence[Sequence[Row]]) -> list[str]:
    """Returns the lines: cells, entries, runs and passes planned.

    Args:
        contenders: Every entry in every cell.
        rows: The rows that each contender has already.
    """
    cells = dict.fromkeys(f"{c.cell.task} {c.cell.space} on {c.cell.model}" for c in contenders)
    entries = dict.fromkeys(c.entry.name for c in contenders)
    lines = [f"cells: {len(cells)}: {_few(cells)}", f"entries: {len(entries)}: {_few(entries)}"]
    first = contenders[0].cell.recipe.bench
    grid = len(first.lrs) or first.grid
    tried = f"{_counted(grid, 'learning rate')} on {_counted(first.tune_seeds, 'seed')}"
    auto = "lr auto" if first.auto else ""
    best = f"{tried}, then the best{auto and f' and {auto}'}" if first.searches else auto
    lines.append(f"each: {best} on {_counted(first.seeds, 'seed')}")
    runs, rates, passes = 0, 0, 0
    for contender, own in zip(contenders, rows, strict=True):
        asked = contender.asks(own)
        left = contender.total(own) - len(own) - asked
        runs, rates = runs + left, rates + asked
        passes += left * contender.cell.recipe.bench.forwards
    words = [f"{_counted(runs, 'run')} of {first.forwards:,}"]
    words += [f"{_counted(rates, 'rate')} to begin a grid with"] if rates else []
    return [*lines, f"passes: about {passes:,} planned: {', and '.join(words)}"]


def cell_lines(cell: Cell, body: Body) -> list[str]:
    """Returns the lines on a cell's model, on what of it is trained, and on its rows.

    Args:
        cell: The cell.
        body: What its runs work on.
    """
    rows = f"{len(body.train):,} to train and {len(body.validation):,} to score on"
    model, trained = model_lines(cell.recipe, body.blocks, body.source)
    return [model, trained, f"rows: {cell.task}, {rows}"]


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - SHOWN
    return "; ".join(every[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
