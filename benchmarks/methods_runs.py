"""The runs of `methods.py`: one of them, where its rates begin, which rate is best."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from methods_ground import Entry, Ground

from zopeft.errors import InputError, RunError
from zopeft.tasks import task_loss

SEARCHED = 0
"""The seed that rates are chosen on; the others are reported."""
RATIO = 2.5
"""From one rate of the grid to the next."""
MOST = 8
"""Rates that are tried at most."""
LOOK = 60
"""Forward passes after which is seen how far a method has gone."""
BLOWN = 3.0
"""A run is broken off once the mean loss of 20 steps is so many times that of the first 20."""
DUAL = 2
"""What a forward pass with dual numbers counts: it does twice the arithmetic."""
Row = dict[str, Any]


@dataclass
class Outcome:
    """What some steps came to.

    Args:
        steps: Steps made.
        forwards: Forward passes.
        diverged: Whether they broke off.
        seconds: CPU time.
    """

    steps: int = 0
    forwards: int = 0
    diverged: bool = False
    seconds: float = 0.0


@torch.no_grad()
def go(ground: Ground, entry: Entry, lr: float, seed: int, forwards: int) -> Outcome:
    """Trains from the start of a seed, and leaves the weights where that ends."""
    ground.reset(seed, entry)
    method = entry.make(ground.blocks, ground.train, lr, seed, ground.mask)
    out, losses, cost = Outcome(), [], 0
    worth = DUAL if entry.method == "forward_gradient" else 1
    feed, begun = ground.feed(seed), time.process_time()

    def counted(closure: Any) -> Any:
        if method.groups:
            out.forwards += method.forwards
            return closure

        def loss() -> torch.Tensor:
            out.forwards += worth
            found: torch.Tensor = closure()
            return found

        return loss

    while out.forwards + cost <= forwards:
        batch, before = next(feed), out.forwards
        try:
            losses.append(float(method.step(counted(ground.closure(method, batch)))))
        except RunError:
            out.diverged = True
            break
        cost = max(cost, out.forwards - before)
        last = statistics.fmean(losses[-20:])
        if not math.isfinite(last) or last > BLOWN * statistics.fmean(losses[:20]):
            out.diverged = True
            break
    out.steps, out.seconds = len(losses), time.process_time() - begun
    return out


class Field:
    """All entries on one ground, and the file of their rows.

    Args:
        ground: Model and data.
        path: The rows' file; a run whose row is there is not made again.
        told: What is the same in all rows.
        forwards: Forward passes of a run.
        searched: Seeds that rates are chosen on, by the mean.
    """

    def __init__(
        self,
        ground: Ground,
        path: Path,
        told: Row,
        forwards: int,
        searched: Sequence[int] = (SEARCHED,),
    ) -> None:
        self.ground, self.path, self.told = ground, path, told
        self.forwards, self.searched = forwards, searched
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]
        self._wanted: float | None = None

    def hold(self, entry: Entry, baseline: Entry, seeds: list[int]) -> None:
        """Makes all runs of an entry.

        Args:
            entry: Who runs.
            baseline: MeZO, by whose steps rates are placed; its own runs come first.
            seeds: The reported ones.
        """
        lr = self.best(entry, baseline)
        if lr is None:
            return
        for seed in seeds:
            self.run("run", entry, lr, seed)

    def best(self, entry: Entry, baseline: Entry) -> float | None:
        """Returns the rate that does best where it is chosen: downhill, rate by rate."""
        if self._find("refused", entry.name, **entry.identity) is not None:
            return None
        try:
            first = self.first(entry, baseline)
        except InputError as error:
            # It does not serve these weights.
            told = {"kind": "refused", "entry": entry.name, "why": str(error)}
            self._keep(told | entry.identity)
            return None
        if first is None:
            return None
        tried: dict[int, float] = {}

        def score(place: int) -> float:
            if place not in tried:
                lr = float(f"{first * RATIO**place:.4g}")
                rows = [self.run("rate", entry, lr, seed) for seed in self.searched]
                losses = [math.inf if row["diverged"] else row["loss_after"] for row in rows]
                tried[place] = statistics.fmean(losses)
            return tried[place]

        for place in (0, 1, -1):
            score(place)
        while len(tried) < MOST:
            best = min(tried, key=lambda place: (tried[place], place))
            # Where all have diverged, the way is down.
            beyond = min(tried) - 1 if best == min(tried) else max(tried) + 1
            if best not in (min(tried), max(tried)):
                break
            score(beyond)
        best = min(tried, key=lambda place: (tried[place], place))
        return float(f"{first * RATIO**best:.4g}") if math.isfinite(tried[best]) else None

    def first(self, entry: Entry, baseline: Entry) -> float | None:
        """Returns the rate that the grid begins at.

        MeZO's is what it proposes for itself. The others' is the one at which `LOOK` forward
        passes take the weights as far as they take MeZO's at its best rate, whatever the
        units of either.
        """
        found = self._find("first", entry.name, **entry.identity)
        if found is not None:
            first: float | None = found["lr"]
            return first
        if entry.name == baseline.name:
            lr: float | None = self._proposed(entry)
        else:
            start = self.best(baseline, baseline)
            assert start is not None
            if self._wanted is None:
                self._wanted = self._reach(baseline, start)
            lr = self._as_far(entry, start, self._wanted)
        self._keep({"kind": "first", "entry": entry.name, "lr": lr, **entry.identity})
        return lr

    def _proposed(self, entry: Entry) -> float:
        self.ground.reset(SEARCHED, entry)
        method = entry.make(self.ground.blocks, self.ground.train, "auto", SEARCHED)
        batch = next(self.ground.feed(SEARCHED))
        found: float = method.calibrate(lambda: task_loss(self.ground.model, batch))
        return float(f"{found:.4g}")

    def _reach(self, entry: Entry, lr: float) -> float:
        """Returns the way that a forward pass takes the weights, as steps of a random walk."""
        out = go(self.ground, entry, lr, SEARCHED, LOOK)
        if out.diverged:
            return math.inf
        return self.ground.moved(SEARCHED) / math.sqrt(out.forwards)

    def _as_far(self, entry: Entry, lr: float, wanted: float) -> float | None:
        for _ in range(6):
            found = self._reach(entry, lr)
            if not math.isfinite(found):
                lr /= 100.0
                continue
            if found == 0.0:
                lr *= 100.0
                continue
            lr *= wanted / found
            if 1 / 30 < wanted / found < 30:
                return float(f"{lr:.4g}")
        return None

    def run(self, kind: str, entry: Entry, lr: float, seed: int) -> Row:
        """Makes a run, or returns its row."""
        asked = {"seed": seed, "lr": lr, "budget": self.forwards, **entry.identity}
        known = self._find(kind, entry.name, **asked)
        if known is not None:
            return known
        out = go(self.ground, entry, lr, seed, self.forwards)
        groups = self.ground.tuned_on if kind == "rate" else self.ground.reported_on
        after = math.inf if out.diverged else self.ground.loss(groups)
        before = self._before(entry, seed, groups)
        diverged = not after <= before + 1.0
        row = {
            "kind": kind,
            "entry": entry.name,
            **asked,
            "loss_before": round(before, 4),
            "loss_after": None if diverged else round(after, 4),
            "diverged": diverged,
            "steps": out.steps,
            "forwards": out.forwards,
            "cpu_seconds": round(out.seconds, 1),
        }
        return self._keep(row)

    def _before(self, entry: Entry, seed: int, groups: Any) -> float:
        # A new adapter does nothing, so that no start differs from another.
        self.ground.reset(seed, entry)
        return self.ground.loss(groups)

    def _find(self, kind: str, entry: str, **asked: Any) -> Row | None:
        wanted = {"kind": kind, "entry": entry, **asked}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def _keep(self, row: Row) -> Row:
        row |= self.told
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({k: v for k, v in row.items() if k not in self.told}), flush=True)
        return row
