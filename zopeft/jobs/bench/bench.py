"""The job of ``zopeft bench``: all runs, their rows, and the report of them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zopeft.errors import input_error
from zopeft.jobs.bench.beginning import begin_lines
from zopeft.jobs.bench.cells import Cell, Request, cells_of
from zopeft.jobs.bench.contest import Contender
from zopeft.jobs.bench.entry import Entry, parse_entry, with_controls
from zopeft.jobs.bench.making import trained_of
from zopeft.jobs.bench.pool import hold_all
from zopeft.jobs.build import load_rows, load_task
from zopeft.jobs.folder import Folder, stored_record
from zopeft.jobs.kept import Kept
from zopeft.jobs.progress import Listener, Progress, ignore
from zopeft.models.source import EMBEDDED
from zopeft.reading import to_json
from zopeft.recipe.schema import Recipe
from zopeft.report.curves import draw_curves, draw_rates
from zopeft.report.rows import FILE, Row, RowFile, check_rows, read_rows
from zopeft.report.standings import CellReport, plain, report, totals
from zopeft.report.summary import commit, hardware, versions
from zopeft.report.tables import markdown
from zopeft.staging import staged


def bench(
    request: Request,
    out: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Compares entries on models, tasks and spaces, and writes rows and report to a folder.

    Args:
        request: Who is compared, on what, with how much.
        out: The folder; None takes ``runs/bench-N``.
        overwrite: Whether an earlier bench may be replaced.
        resume: Whether the bench in `out` is gone on with: a run whose row is there is not
            made again.
        listener: Called with reports.

    Returns:
        The summary, which is also the folder's ``bench.json``.

    Raises:
        InputError: Something that the request names cannot be used.
    """
    recipe, cells = cells_of(request)
    entries = entries_of(recipe)
    inputs = [recipe.model.name, recipe.task.data]
    kept = Kept(_rows_in, "run")
    with Folder(out, "bench", overwrite, resume, inputs, kept) as folder:
        if resume and stored_record(out).get("job") != "bench":
            raise input_error("--resume", "the run in this folder is no bench", str(out))
        return _benched(recipe, cells, entries, folder, listener)


def _rows_in(folder: Path) -> int:
    return len(read_rows(folder)) if (folder / FILE).exists() else 0


def _benched(
    recipe: Recipe,
    cells: Sequence[Cell],
    entries: Sequence[Entry],
    folder: Folder,
    listener: Listener,
) -> dict[str, Any]:
    """Makes all runs of a bench in its folder."""
    started = time.monotonic()
    contenders = _contenders(cells, entries)
    check(cells, contenders)
    state = {
        "job": "bench",
        "out": str(folder.path),
        "recipe": recipe.to_dict(),
        "entries": [entry.line for entry in entries],
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }
    folder.begin(state)
    file = RowFile(folder.path)
    _check_settings(cells, file)
    _check_finetuners(contenders, file)
    _hold(recipe, contenders, file, listener)
    summary = render(folder.path)
    summary |= {"seconds": round(time.monotonic() - started, 3)}
    folder.write({"status": "done", "runs": summary["runs"], "seconds": summary["seconds"]})
    return summary


def entries_of(recipe: Recipe) -> list[Entry]:
    """Returns a bench's entries with their controls.

    Raises:
        InputError: An entry's line is wrong.
    """
    bench, method = recipe.bench, recipe.method
    lines = [*bench.entries, *(f"finetuner {shlex.quote(one)}" for one in bench.finetuners)]
    if method.name or method.finetuner:
        own = f"finetuner {shlex.quote(method.finetuner)}" if method.finetuner else ""
        lines.append(f"{method.name or ''} {own}")
    return with_controls([parse_entry(line) for line in lines])


def _contenders(cells: Sequence[Cell], entries: Sequence[Entry]) -> list[Contender]:
    """Returns every entry in every cell, the cheap way round: cell by cell."""
    return [Contender(cell, entry.on(cell.model)) for cell in cells for entry in entries]


def check(cells: Sequence[Cell], contenders: Sequence[Contender]) -> None:
    """Looks for models, data and fine-tuners before the first run.

    Raises:
        InputError: One of them cannot be had.
    """
    from zopeft.models import resolve

    for name in dict.fromkeys(cell.model for cell in cells):
        resolve(None if name == EMBEDDED else name)
    for entry in {c.entry.line: c.entry for c in contenders if c.entry.finetuner}.values():
        trained_of(entry)
    for cell in cells:
        recipe = cell.recipe
        task = load_task(recipe.task.name, recipe.task.loss)
        for split in ("train", "validation"):
            load_rows(recipe, task, split, resolve(recipe.model.name).embedded)


def _check_settings(cells: Sequence[Cell], file: RowFile) -> None:
    """Refuses to mix runs with other settings: they would be compared with each other.

    Raises:
        InputError: A cell has rows with other settings.
    """
    known = {(r["model"], r["task"], r["space"]): r["settings"] for r in file.rows.values()}
    for cell in cells:
        place = (cell.model, cell.task, cell.space)
        if known.get(place, cell.digest) != cell.digest:
            raise input_error(
                "--resume",
                "the runs in this folder have other settings (model, task, method, batch size "
                "or budget)",
                ", ".join(place),
                "repeat the command as it was, or start in another --out",
            )


def _check_finetuners(contenders: Sequence[Contender], file: RowFile) -> None:
    """Refuses to mix runs of two fine-tuners that have stood in one folder, one after the other.

    Raises:
        InputError: An entry has rows of another fine-tuner than is there now.
    """
    known = {(r["model"], r["entry"]): r.get("content") for r in file.rows.values()}
    for one in contenders:
        before = known.get((one.cell.model, one.entry.line))
        if before not in (None, one.content):
            raise input_error(
                "--resume",
                "the runs in this folder are of another fine-tuner than stands now in",
                str(one.entry.finetuner),
                "put that one back, or start in another --out",
            )


def _hold(
    recipe: Recipe, contenders: Sequence[Contender], file: RowFile, listener: Listener
) -> None:
    """Makes the runs and tells the listener of each."""
    own = [[row for row in file.rows.values() if c.owns(row)] for c in contenders]
    made, told = sum(map(len, own)), set()
    if made:
        listener(Progress("bench", note=f"{made} runs are there already"))
    for line in begin_lines(contenders, own):
        listener(Progress("bench", note=line))
    listener(Progress("bench", made, sum(c.total(r) for c, r in zip(contenders, own, strict=True))))

    def tell(line: str) -> None:
        # Several cells share a model, and workers do not know of each other.
        if line not in told:
            told.add(line)
            listener(Progress("bench", note=line))

    def keep(row: Row) -> None:
        file.add(row)
        next(rows for c, rows in zip(contenders, own, strict=True) if c.owns(row)).append(row)
        done = sum(map(len, own))
        total = sum(c.total(rows) for c, rows in zip(contenders, own, strict=True))
        place = f"{row['model']} {row['task']} {row['space']}"
        listener(Progress(f"bench {place}", done, total, loss=row["train_loss"]))

    hold_all(contenders, file.rows, recipe.bench.workers, keep, tell)


def render(folder: str | Path) -> dict[str, Any]:
    """Writes ``report.md``, ``bench.json`` and the pictures from a folder's rows.

    Args:
        folder: A bench's folder.

    Returns:
        The summary.

    Raises:
        InputError: There are no rows in the folder.
    """
    path = Path(folder).expanduser()
    rows = read_rows(path)
    if not rows:
        raise input_error("--report", "no rows in this folder", str(folder))
    check_rows(rows, path / FILE)
    cells = report(rows)
    pictures = {"curves.png": draw_curves}
    if any(cell.searched for cell in cells):
        pictures["rates.png"] = draw_rates
    for name, draw in pictures.items():
        draw(cells, rows, path / name)
    text = markdown(cells, _about(rows), list(pictures))
    with staged(path / "report.md") as place:
        place.write_text(text, encoding="utf-8")
    summary = {**summarise(cells, rows, path), "pictures": list(pictures)}
    with staged(path / "bench.json") as place:
        place.write_text(to_json(summary) + "\n", encoding="utf-8")
    return summary


def summarise(cells: Sequence[CellReport], rows: Sequence[Row], path: Path) -> dict[str, Any]:
    """Returns the summary of a bench."""
    return {
        "job": "bench",
        "out": str(path),
        "runs": sum(row["role"] != "centre" for row in rows),
        "forward_passes": sum(row["forwards"] for row in rows),
        "seconds_of_runs": round(sum(row["seconds"] for row in rows), 3),
        "totals": totals(cells),
        "cells": plain(cells),
    }


def _about(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what a report says about where its rows come from."""
    runs = [row for row in rows if row["role"] != "centre"]
    first = rows[-1]
    hardware = first["hardware"]
    return {
        "runs": len(runs),
        "forward passes": f"{sum(row['forwards'] for row in rows):,}",
        "commit": ", ".join(sorted({row["commit"] for row in rows if row["commit"]})),
        "versions": ", ".join(f"{name} {value}" for name, value in first["versions"].items()),
        "hardware": ", ".join(f"{name} {value}" for name, value in hardware.items()),
    }
