"""Several processes that share the contenders of a bench; the caller alone writes."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zopeft.errors import InputError, ZopeftError, run_error
from zopeft.jobs.bench.beginning import cell_lines
from zopeft.jobs.bench.body import Body
from zopeft.jobs.bench.caller import begin, interrupts_withheld
from zopeft.jobs.bench.cells import Cell
from zopeft.jobs.bench.contest import Contender, Contest
from zopeft.report.rows import Row


def hold_all(
    contenders: Sequence[Contender],
    known: Mapping[str, Row],
    workers: int,
    keep: Callable[[Row], None],
    tell: Callable[[str], None],
) -> None:
    """Makes all runs of all contenders, in this process or in several.

    Args:
        contenders: What is to be done.
        known: Key to row of the runs made before.
        workers: Processes; 1 is this one.
        keep: Called in this process with each new row.
        tell: Called in this process with each line on a cell.

    Raises:
        InputError: An entry cannot be used in its cell.
        RunError: A worker broke down.
    """
    if workers == 1 or len(contenders) == 1:
        contest = Contest(known, keep, teller(tell))
        for contender in contenders:
            contest.hold(contender)
        return
    context: Any = multiprocessing.get_context("spawn")
    todo, told = context.Queue(), context.Queue()
    for contender in contenders:
        todo.put(contender)
    count = min(workers, len(contenders))
    for _ in range(count):
        todo.put(None)
    processes = [
        context.Process(
            target=begin, args=(__name__, _work.__name__, todo, told, dict(known)), daemon=True
        )
        for _ in range(count)
    ]
    try:
        with interrupts_withheld():
            for process in processes:
                process.start()
        _listen(processes, told, keep, tell)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def teller(tell: Callable[[str], None]) -> Callable[[Cell, Body], None]:
    """Returns what tells the lines on a cell one by one."""

    def lines(cell: Cell, body: Body) -> None:
        for line in cell_lines(cell, body):
            tell(line)

    return lines


def _listen(
    processes: Sequence[Any],
    told: Any,
    keep: Callable[[Row], None],
    tell: Callable[[str], None],
) -> None:
    """Takes rows and lines from workers until all have finished."""
    running = len(processes)
    while running:
        try:
            kind, content = told.get(timeout=5)
        except queue.Empty:
            dead = [p.exitcode for p in processes if p.exitcode]
            if dead:
                raise run_error("--workers", "a worker ended", dead[0], "--resume") from None
            continue
        if kind == "row":
            keep(content)
        elif kind == "note":
            tell(content)
        elif kind == "done":
            running -= 1
        elif kind == "input":
            raise InputError(content)
        else:
            raise run_error("--workers", "a worker broke down", do=content)


def _work(todo: Any, told: Any, known: Mapping[str, Row]) -> None:
    """Takes contenders until there are none; everything is told to the caller."""
    import torch

    torch.set_num_threads(1)
    tell = teller(lambda line: told.put(("note", line)))
    contest = Contest(known, lambda row: told.put(("row", row)), tell)
    try:
        while (contender := todo.get()) is not None:
            contest.hold(contender)
        told.put(("done", None))
    except InputError as error:
        told.put(("input", str(error)))
    except ZopeftError as error:
        told.put(("error", str(error)))
    except Exception:
        told.put(("error", traceback.format_exc(limit=-3)))
