"""The runs of one entry in one cell: its grid, its best learning rate, and lr=auto."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from zopeft.errors import RunError
from zopeft.jobs.bench.body import Bodies, Body
from zopeft.jobs.bench.cells import Cell
from zopeft.jobs.bench.entry import Entry
from zopeft.jobs.bench.grid import search
from zopeft.jobs.bench.making import trained_of
from zopeft.jobs.bench.run import Outcome, propose, run
from zopeft.models.quiet import quiet
from zopeft.report.rows import Row, finite
from zopeft.report.summary import commit, hardware, versions


@dataclass(frozen=True)
class Contender:
    """One entry in one cell: a unit of work.

    Attributes:
        cell: Model, task and space.
        entry: Who runs.
    """

    cell: Cell
    entry: Entry

    @cached_property
    def content(self) -> str:
        """Digest of the entry's fine-tuner as it was trained; "" without one.

        A folder keeps its name when another fine-tuner is written to it.
        """
        from zopeft.finetuner.digest import digest_of

        return digest_of(trained_of(self.entry)) if self.entry.finetuner else ""

    @property
    def seeds(self) -> tuple[range, range]:
        """The tuning seeds and the reported ones."""
        recipe = self.cell.recipe
        first, tuning = recipe.training.seed, recipe.bench.tune_seeds
        start = first + tuning
        return range(first, start), range(start, start + recipe.bench.seeds)

    def total(self, rows: Sequence[Row]) -> int:
        """Returns how many rows a contender will have come to.

        Args:
            rows: Those that there are; what a bench of other seeds or without a grid has left
                stays. A grid that has grown is as long as it is.
        """
        bench = self.cell.recipe.bench
        tuning, reported = self.seeds

        def made(role: str, seeds: range) -> int:
            return len({row["seed"] for row in rows if row["role"] == role} & set(seeds))

        auto = len(reported) - made("auto", reported)
        if not bench.searches:
            return len(rows) + auto
        if any(row["lr"] is None for row in self._centres(rows)):
            return len(rows)
        tried = sum(row["role"] == "grid" and row["seed"] in tuning for row in rows)
        left = int(self.asks(rows))
        left += max(0, (len(bench.lrs) or bench.grid) * len(tuning) - tried)
        left += len(reported) - made("fresh", reported)
        left += auto if bench.auto and not self.entry.control else 0
        return len(rows) + left

    def asks(self, rows: Sequence[Row]) -> bool:
        """Whether it is still to propose a rate for its grid.

        Args:
            rows: Those that there are.
        """
        return self.cell.recipe.bench.searches and not self._centres(rows)

    def _centres(self, rows: Sequence[Row]) -> list[Row]:
        first = self.seeds[0][0]
        return [row for row in rows if row["role"] == "centre" and row["seed"] == first]

    def owns(self, row: Row) -> bool:
        """Whether a row is of this entry in this cell."""
        own = (self.cell.model, self.cell.task, self.cell.space, self.entry.line)
        return own == (row["model"], row["task"], row["space"], row["entry"])


def key_of(cell: Cell, entry: Entry, role: str, seed: int, lr: float | str) -> str:
    """Returns what tells a run from all others; a run with a known key is not made again."""
    rate = lr if isinstance(lr, str) else f"{lr:.6g}"
    parts = (cell.model, cell.task, cell.space, cell.digest, entry.line, role, rate, seed)
    return "|".join(map(str, parts))


class Contest:
    """Makes the runs of contenders, but none whose row is known.

    Args:
        known: Key to row of the runs made before.
        keep: Called with each new row.
        tell: Called with what there is to say of a cell, before its first run here.
    """

    def __init__(
        self,
        known: Mapping[str, Row],
        keep: Callable[[Row], None],
        tell: Callable[[Cell, Body], None],
    ) -> None:
        self.known = dict(known)
        self.keep, self.tell = keep, tell
        self._told: set[tuple[str, str, str]] = set()
        self.bodies = Bodies()

    def hold(self, contender: Contender) -> None:
        """Makes all runs of a contender.

        Raises:
            InputError: The entry cannot be used in its cell.
        """
        bench = contender.cell.recipe.bench
        tuning, reported = contender.seeds
        if not bench.searches:
            for seed in reported:
                self._made(contender, "auto", seed, "auto")
            return
        centre = self._centre(contender, tuning[0])
        if centre is None:
            return

        def score(lr: float) -> float:
            losses = [self._made(contender, "grid", seed, lr) for seed in tuning]
            found = [float("inf") if x is None else x for x in losses]
            return sum(found) / len(found)

        if bench.lrs:
            tried = {lr: score(lr) for lr in bench.lrs}
            lr = min(tried, key=lambda rate: tried[rate])
        else:
            lr = search(centre, bench.ratio, bench.grid, bench.extensions, score).lr
        for seed in reported:
            self._made(contender, "fresh", seed, lr)
        # What a control proposes for itself is no part of the comparison.
        for seed in reported if bench.auto and not contender.entry.control else ():
            self._made(contender, "auto", seed, "auto")

    def _centre(self, contender: Contender, seed: int) -> float | None:
        """Returns the learning rate that a contender's grid is placed around."""
        cell, entry = contender.cell, contender.entry
        key = key_of(cell, entry, "centre", seed, "auto")
        if key not in self.known:
            with quiet():
                body = self._body(cell, seed)
                try:
                    out = propose(entry, body, cell.recipe, seed)
                except RunError as error:
                    out = Outcome(float("nan"), str(error), diverged=True)
            self._add(_row(contender, key, "centre", seed, out))
        lr: float | None = self.known[key]["lr"]
        return lr

    def _made(self, contender: Contender, role: str, seed: int, lr: float | str) -> float | None:
        """Makes a run unless it is known; returns its training loss."""
        cell, entry = contender.cell, contender.entry
        key = key_of(cell, entry, role, seed, lr)
        if key not in self.known:
            started = time.perf_counter()
            with quiet():
                body = self._body(cell, seed)
                out = run(entry, body, lr, cell.recipe, seed)
                scores = _scores(cell, body, out, role)
            row = {**_row(contender, key, role, seed, out), **scores}
            row["seconds_in_all"] = round(time.perf_counter() - started, 3)
            self._add(row)
        loss: float | None = self.known[key]["train_loss"]
        return loss

    def _body(self, cell: Cell, seed: int) -> Body:
        """Returns the body of a run, and says what it is once a cell."""
        body = self.bodies.get(cell, seed)
        place = (cell.model, cell.task, cell.space)
        if place not in self._told:
            self._told.add(place)
            self.tell(cell, body)
        return body

    def _add(self, row: Row) -> None:
        self.known[row["key"]] = row
        self.keep(row)


def _row(contender: Contender, key: str, role: str, seed: int, out: Outcome) -> Row:
    """Returns what a row says of a run, without its validation."""
    cell, entry = contender.cell, contender.entry
    return {
        "key": key,
        "model": cell.model,
        "task": cell.task,
        "space": cell.space,
        "settings": cell.digest,
        "entry": entry.line,
        "name": entry.name,
        "method": entry.method,
        "finetuner": entry.finetuner,
        "content": contender.content,
        "control": entry.control or ("scale 1" if entry.line == "mezo" else ""),
        "options": dict(entry.options),
        "seed": seed,
        "role": role,
        "lr": finite(out.lr),
        "lr_reason": out.lr_reason,
        "budget": cell.recipe.bench.forwards,
        "batch_size": cell.recipe.training.batch_size,
        "steps": out.steps,
        "forwards": out.forwards,
        "calibration": out.calibration,
        "diverged": out.diverged,
        "train_loss": finite(out.tail),
        "val_loss": None,
        "metric": None,
        "metric_name": None,
        "curve": out.curve(),
        "seconds": round(out.seconds, 3),
        "peak_bytes": out.peak_bytes,
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
    }


def _scores(cell: Cell, body: Body, out: Outcome, role: str) -> dict[str, Any]:
    """Returns a run's validation loss and, where it is reported, its metric."""
    from zopeft.tasks.evaluation import evaluate, mean_loss

    if out.diverged or not out.steps:
        return {}
    recipe, model = cell.recipe, body.blocks.model
    size = recipe.training.eval_batch_size
    if role == "grid" or not recipe.bench.metric:
        loss = mean_loss(model, body.tokenizer, body.task, body.validation, size, body.length)
        return {"val_loss": finite(loss)}
    found = evaluate(model, body.tokenizer, body.task, body.validation, size, body.length)
    name = "accuracy" if "accuracy" in found else "f1"
    return {"val_loss": finite(found["loss"]), "metric": found[name], "metric_name": name}
