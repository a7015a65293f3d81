"""The metrics of a run, step by step: ``metrics.jsonl`` beside the journal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from zopeft.errors import InputError
from zopeft.reading import fits, parse_json
from zopeft.staging import staged

METRICS = "metrics.jsonl"
EVALUATION = "eval_"
"""What the names of scores begin with, as in the Trainer's logs."""


class Metrics:
    """One JSON line for each interval of steps and each evaluation, appended as they come.

    A line holds ``step`` (steps made), ``seconds`` of training until then, and either ``loss``
    (mean over the interval), ``lr`` and ``grad`` (root mean square of the projected gradients),
    or ``eval_loss`` and the task's scores. Numbers that are not finite are null. A run that
    goes on keeps the lines that it has, and writes none twice.

    Args:
        folder: The run's folder.
        resume: Whether its lines are kept.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        self.path = folder / METRICS
        self._writes = os.environ.get("RANK", "0") == "0"
        self.entries: list[dict[str, Any]] = _read(self.path) if resume else []
        self._rewrite()

    def keep(self, step: int) -> None:
        """Drops what was written of steps after `step`, which are about to be made again."""
        kept = [entry for entry in self.entries if entry["step"] <= step]
        if len(kept) != len(self.entries):
            self.entries = kept
            self._rewrite()

    @property
    def seconds(self) -> float:
        """Seconds of training until the last line; 0 without one."""
        found: Any = self.entries[-1].get("seconds") if self.entries else None
        return float(found) if fits(found, "number") else 0.0

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations, in order."""
        return [entry for entry in self.entries if _is_evaluation(entry)]

    def scores(self, step: int) -> dict[str, Any] | None:
        """Returns the scores after so many steps, as they were measured; None without any."""
        entry = next((one for one in self.evaluations if one["step"] == step), None)
        if entry is None:
            return None
        found = {n[len(EVALUATION) :]: v for n, v in entry.items() if n.startswith(EVALUATION)}
        return {name: math.nan if value is None else value for name, value in found.items()}

    def add(self, step: int, values: Mapping[str, Any], seconds: float) -> bool:
        """Appends a line, unless there is one of its kind for this step.

        Args:
            step: Steps made.
            values: Names and numbers.
            seconds: Seconds of training until now.

        Returns:
            Whether it was appended.
        """
        numbers = {name: _finite(value) for name, value in values.items()}
        entry = {"step": step, **numbers, "seconds": round(seconds, 3)}
        kind = _is_evaluation(entry)
        # In order of their steps, so that those of this one stand at the end.
        here = takewhile(lambda one: one["step"] >= step, reversed(self.entries))
        if any(one["step"] == step and _is_evaluation(one) == kind for one in here):
            return False
        self.entries.append(entry)
        if self._writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        return True

    def evaluated(self, step: int, scores: Mapping[str, Any], seconds: float) -> None:
        """Appends the scores of an evaluation, as `zopeft.jobs.evaluate.measure` gives them."""
        self.add(step, {f"{EVALUATION}{name}": value for name, value in scores.items()}, seconds)

    def _rewrite(self) -> None:
        if not self._writes or (not self.entries and not self.path.exists()):
            return
        with staged(self.path) as place:
            lines = (json.dumps(entry) + "\n" for entry in self.entries)
            place.write_text("".join(lines), encoding="utf-8")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns those of a result's entries that are single numbers."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _read(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file; what is torn or no line of metrics is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = parse_json(line, str(path))
        except InputError:
            continue
        if isinstance(entry, dict) and fits(entry.get("step"), "count"):
            found.append(entry)
    return found


def _is_evaluation(entry: Mapping[str, Any]) -> bool:
    return any(name.startswith(EVALUATION) for name in entry)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
