"""The runs of `real_model.py`: one of them, whether it diverged, and the file of their rows."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from methods_runs import BLOWN, Field, Row
from real_model_ground import Competitor, RealGround, serves

from zopeft.errors import InputError, RunError
from zopeft.jobs.bench.run import Outcome

SEARCHED = (101, 102)
"""Seeds that rates are chosen on; they are not reported."""
TAIL = 0.05
"""Share of a run whose mean loss is one look at where it stands."""
SURE = 3.0
"""Standard errors of the difference of two such means that are no scatter of batches."""
AUTO = "auto"
LOOKS = 10
"""Times that a reported run's held-out training rows are looked at."""


@dataclass
class Run(Outcome):
    """What a run came to, and where it stood on its way.

    Attributes:
        looks: Forward passes, and the loss of held-out training rows after them (None where it
            is not finite). What looking costs counts neither as passes nor as time.
    """

    looks: list[tuple[int, float | None]] = field(default_factory=list)


def diverged(losses: Sequence[float]) -> bool:
    """Says whether a run ends far above its own minimum.

    The steps are cut into parts of `TAIL` each. The end, the mean of the last part, is far above
    the lowest part if it is so by more than half of the fall from the first part to the lowest (so
    one that ends above its beginning has diverged), and by more than `SURE` standard errors of the
    difference of two parts, the scatter of batches being that of neighbouring steps. A loss that is
    not finite has diverged. Fewer than two parts tell nothing.
    """
    if not all(map(math.isfinite, losses)):
        return True
    width = max(1, round(TAIL * len(losses)))
    # From the end, so that the last part is whole.
    cuts = range(len(losses), width - 1, -width)
    parts = [statistics.fmean(losses[cut - width : cut]) for cut in cuts]
    if len(parts) < 2:
        return False
    end, low, first = parts[0], min(parts), parts[-1]
    jumps = [(b - a) ** 2 for a, b in pairwise(losses)]
    # Neighbours differ by twice the variance of one, two means by twice that of one over width.
    error = math.sqrt(statistics.fmean(jumps) / width)
    return end - low > max((first - low) / 2.0, SURE * error)


@torch.no_grad()
def go(
    ground: RealGround,
    one: Competitor,
    lr: float | str,
    seed: int,
    forwards: int,
    looks: int = 0,
) -> Run:
    """Trains from the start of a seed until its passes are spent, and leaves the weights there.

    Args:
        ground: Model and data.
        one: Who runs.
        lr: A learning rate, or "auto".
        seed: Of the batches, the noise and a new adapter.
        forwards: Passes, with those that lr auto takes.
        looks: Times that the held-out rows are looked at, evenly over the passes.
    """
    ground.reset(seed, one)
    method = one.make(ground.blocks, ground.train, lr, seed)
    feed, begun = ground.feed(seed), time.process_time()
    out = Run(0.0 if lr == AUTO else float(lr), "given")
    cost = method.forwards
    looking = 0.0
    method.probing.steps_planned = forwards // method.forwards
    if lr == AUTO:
        method.settle(ground.closure(method, next(ground.feed(seed))))
        out.lr_reason = method.lr_reason
    while method.forward_passes + cost <= forwards:
        before = method.forward_passes
        try:
            loss = float(method.step(ground.closure(method, next(feed))))
        except RunError:
            out.diverged = True
            break
        cost = max(cost, method.forward_passes - before)
        out.losses.append(loss)
        out.spent.append(method.forward_passes)
        last = statistics.fmean(out.losses[-20:])
        if not math.isfinite(last) or last > BLOWN * statistics.fmean(out.losses[:20]):
            out.diverged = True
            break
        if method.forward_passes * looks >= (len(out.looks) + 1) * forwards:
            since = time.process_time()
            stands = ground.loss(ground.held)
            stands = _rounded(stands) if math.isfinite(stands) else None
            out.looks.append((method.forward_passes, stands))
            told = f"{one.name}, seed {seed}: {stands} after {out.looks[-1][0]} passes"
            print(told, file=sys.stderr, flush=True)
            looking += time.process_time() - since
    if lr == AUTO and method.rate is not None:
        out.lr = float(method.rate.began)
    out.steps, out.forwards = len(out.losses), method.forward_passes
    out.seconds = time.process_time() - begun - looking
    out.diverged = out.diverged or diverged(out.losses)
    return out


class Sitting(Field):
    """All competitors on one ground, and the file of their rows.

    Args:
        ground: Model and data.
        path: The rows' file; a run whose row is there is not made again.
        told: What is the same in all rows.
        forwards: Forward passes of a run.
        setting: What of `told` makes another run of it.
    """

    def __init__(
        self, ground: RealGround, path: Path, told: Row, forwards: int, setting: Row
    ) -> None:
        super().__init__(ground, path, told, forwards, SEARCHED)
        self.ground: RealGround = ground
        self.setting = setting

    def hold(
        self, one: Competitor, baseline: Competitor, seeds: Sequence[int], rates: Sequence[str] = ()
    ) -> None:
        """Makes all runs of a competitor: at lr auto, and at the rate that does best.

        Args:
            one: Who runs.
            baseline: MeZO.
            seeds: The reported ones.
            rates: "auto" and "best", or one of them.
        """
        if not serves(one, self.ground.space):
            return
        if AUTO in rates:
            try:
                for seed in seeds:
                    self.run("auto", one, AUTO, seed)
            except InputError as error:
                self._refuse(one, error)
        if "best" in rates:
            super().hold(one, baseline, list(seeds))

    def first(self, one: Competitor, baseline: Competitor) -> float | None:
        """Returns the rate that the grid begins at: what the competitor proposes for itself."""
        found = self._find("first", one.name, **one.identity, **self.setting)
        if found is None:
            told = {"kind": "first", "entry": one.name, "lr": self._proposed(one)}
            found = self._keep(told | one.identity)
        return found["lr"]

    def run(self, kind: str, one: Competitor, lr: float | str, seed: int) -> Row:
        """Makes a run, or returns its row."""
        asked = {"seed": seed, "lr": lr, "budget": self.forwards, **one.identity}
        known = self._find(kind, one.name, **asked, **self.setting)
        if known is not None:
            return known
        before = self.start(one)
        looks = 0 if kind == "rate" else LOOKS
        out = go(self.ground, one, lr, seed, self.forwards, looks)
        after = self._looked(kind, out)
        chosen = "held" if kind == "rate" else "validation"
        row = {
            "kind": kind,
            "entry": one.name,
            **asked,
            "loss_before": before[chosen]["loss"],
            "loss_after": after.get(chosen, {}).get("loss"),
            "before": before,
            "after": after,
            "train_loss": _rounded(_last(out.losses)) if out.losses else None,
            "diverged": out.diverged or not after,
            "began": out.lr,
            "steps": out.steps,
            "forwards": out.forwards,
            "cpu_seconds": round(out.seconds, 1),
            "curve": out.curve(),
            "looks": out.looks,
        }
        return self._keep(row)

    def start(self, one: Competitor) -> Row:
        """Returns the scores of the untrained model, which are those of every start."""
        known = self._find("start", "", **self.setting)
        if known is None:
            # A new adapter does nothing, so that no start differs from another.
            self.ground.reset(SEARCHED[0], one)
            held = {"loss": _rounded(self.ground.loss(self.ground.held))}
            found = {"held": held, "validation": _all_rounded(self.ground.scores())}
            known = self._keep({"kind": "start", "entry": "", **found})
        return {name: known[name] for name in ("held", "validation")}

    def _looked(self, kind: str, out: Run) -> Row:
        """Returns the scores at a run's end: of one that chooses a rate, of held rows alone."""
        held = self.ground.loss(self.ground.held) if out.losses else math.inf
        if not math.isfinite(held):
            return {}
        found: Row = {"held": {"loss": _rounded(held)}}
        if kind != "rate":
            found["validation"] = _all_rounded(self.ground.scores())
        return found

    def _refuse(self, one: Competitor, error: InputError) -> None:
        if self._find("refused", one.name, **one.identity) is None:
            told = {"kind": "refused", "entry": one.name, "why": str(error)}
            self._keep(told | one.identity)


def _last(losses: Sequence[float]) -> float:
    """Returns the mean of the last tenth."""
    return statistics.fmean(losses[-max(1, round(0.1 * len(losses))) :])


def _rounded(value: float) -> float:
    return round(value, 5)


def _all_rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _all_rounded(value) for name, value in found.items()}
    return _rounded(found)
