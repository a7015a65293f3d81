"""What a command shows: notes and a bar while it runs, a table or one JSON object at the end."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from zopeft.errors import ZopeftWarning
from zopeft.jobs.progress import Progress
from zopeft.ranks import leads
from zopeft.reading import to_json

from .interrupts import InterruptError, line_of

_UNBROKEN = 400
"""Columns of a table that no terminal shows."""


class Output:
    """The terminal of one command; used as a context around its job.

    With `json`, standard output carries one JSON object and nothing else: whatever the
    libraries print meanwhile goes to standard error.

    Args:
        json: Whether the result is JSON.
        debug: Whether the libraries' warnings are shown.
    """

    def __init__(self, json: bool = False, debug: bool = False) -> None:
        self.json = json
        self._debug = debug
        # Of several processes that do a job together, the first one alone is heard.
        self._silent = not leads()
        self._stdout = sys.stdout
        self._notes = Console(emoji=False, stderr=True, highlight=False, quiet=self._silent)
        # In a file or a pipe, a name broken over lines can be found no more.
        width = None if self._stdout.isatty() else _UNBROKEN
        self._tables = Console(emoji=False, highlight=False, width=width, quiet=self._silent)
        self._stack = contextlib.ExitStack()
        self._bar: Bar | None = None
        self._stage = ""
        self._task: Any = None
        self._start = 0.0
        self._told: set[str] = set()

    def __enter__(self) -> Output:
        if self.json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not self._debug:
            self._stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ZopeftWarning)
            warnings.showwarning = self._warned
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close_bar()
        self._stack.close()
        if isinstance(error, KeyboardInterrupt):
            raise InterruptError(line_of(error)) from error

    def note(self, line: str) -> None:
        """Shows a line on standard error."""
        self._notes.print(line, markup=False, soft_wrap=True)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Shows a warning of zopeft among the notes, each text once."""
        text = str(message)
        if text not in self._told:
            self._told.add(text)
            self.note(f"note: {text}")

    def listen(self, progress: Progress) -> None:
        """Shows a job's report: a line for a note, the bar for a step."""
        if progress.note:
            self.note(progress.note)
        if progress.total and self._notes.is_terminal:
            self._advance(progress)
        elif progress.total and progress.step % max(1, -(-progress.total // 10)) == 0:
            # Without a terminal: ten lines a stage.
            line = f"{progress.stage} {progress.step}/{progress.total} {self._shown(progress)}"
            self.note(line.rstrip())
        if not progress.total and progress.stage != self._stage:
            self._close_bar()
        self._stage = progress.stage

    def _advance(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage:
            self._close_bar()
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=self._notes, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(progress.stage, total=progress.total, shown="")
            self._start = time.monotonic()
        self._bar.update(self._task, completed=progress.step, shown=self._shown(progress))

    def _shown(self, progress: Progress) -> str:
        """Returns the numbers beside the bar, or in a line of its own."""
        parts = []
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if progress.score is not None:
            parts.append(f"score {progress.score:.4f}")
        if progress.lr is not None:
            parts.append(f"lr {progress.lr:.3g}")
        spent = time.monotonic() - self._start
        if progress.seconds is not None:
            parts.append(f"{progress.seconds:.3g} s/step")
            if self._bar is None:
                left = round(progress.seconds * (progress.total - progress.step))
                parts.append(f"ETA {timedelta(seconds=left)}")
        elif self._bar is not None and progress.step > 1 and spent > 0:
            unit = "examples" if progress.stage.startswith("evaluate") else "steps"
            parts.append(f"{progress.step / spent:.1f} {unit}/s")
        return "  ".join(parts)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def result(self, result: Mapping[str, Any] | Sequence[Any], table: Table | None = None) -> None:
        """Ends the command: the JSON object, or the table."""
        self.close()
        if self._silent:
            return
        if self.json:
            print(to_json(result), file=self._stdout, flush=True)
        elif table is not None:
            self._tables.print(table)

    def table(self, table: Table) -> None:
        """Prints one of several tables on standard output."""
        self.close()
        self._tables.print(table)

    def text(self, text: str) -> None:
        """Prints plain text on standard output."""
        self.close()
        if not self._silent:
            print(text, file=self._stdout, flush=True)

    def marked(self, pieces: Sequence[tuple[str, bool]]) -> None:
        """Prints text, the marked pieces of it in colour, or in brackets where there is none.

        Args:
            pieces: Texts and whether they are marked.
        """
        self.close()
        if self._silent:
            return
        if self._tables.is_terminal and not self._tables.no_color:
            parts = [(piece, "bold green" if mark else "") for piece, mark in pieces]
            self._tables.print(Text.assemble(*parts), soft_wrap=True)
        else:
            print("".join(f"[[{t}]]" if m else t for t, m in pieces), file=self._stdout, flush=True)

    def close(self) -> None:
        """Takes the bar away and gives standard output back."""
        self._close_bar()
        self._stack.close()


@contextlib.contextmanager
def output(json: bool, debug: bool) -> Iterator[Output]:
    """Returns the `Output` of a command as a context."""
    with Output(json, debug) as made:
        yield made


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Returns a two-column table of names and values; values of None are left out."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(escape(name), escape(shown(value)))
    return table


def rows_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Returns a table of rows."""
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*(escape(shown(value)) for value in row))
    return table


def shown(value: Any) -> str:
    """Returns a value as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
