"""Whole scores: metrics of a batch that are no mean over its rows, as other libraries have them.

F1 over classes or a correlation is a number for rows together. A probe's score is then that of its
batch, which each completion is given; an evaluation's is that of all its rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from zopeft.errors import explain
from zopeft.tasks.objectives.prompted import Prompted
from zopeft.tasks.objectives.sampling import ScoreError

Gathered = tuple[list[str], list[Sequence[str]]]
"""Answers, and of each those that are right."""


class Compare(Protocol):
    """Compares answers with those that are right; more is better."""

    name: str

    def __call__(self, given: Sequence[str], accepted: Sequence[Sequence[str]]) -> float:
        """Returns one number for all answers.

        Args:
            given: The answers.
            accepted: Of each the answers that are right.
        """
        ...


class WholeScore:
    """A metric of other libraries as a score of completions.

    Args:
        compare: The metric.
    """

    def __init__(self, compare: Compare) -> None:
        self.compare = compare
        self._gathered: Gathered | None = None

    def __call__(
        self, rows: Sequence[Prompted], texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        """Returns the metric of all completions together, once for each.

        Raises:
            ScoreError: It is no number.
        """
        accepted = [one.answers for one in rows]
        if self._gathered is not None:
            self._gathered[0].extend(texts)
            self._gathered[1].extend(accepted)
            return [0.0] * len(rows)
        return [self.value(texts, accepted)] * len(rows)

    def value(self, given: Sequence[str], accepted: Sequence[Sequence[str]]) -> float:
        """Returns the metric of answers.

        Raises:
            ScoreError: It is no number.
        """
        try:
            found = self.compare(given, accepted)
        except Exception as error:
            told = (str(error).strip().splitlines() or [""])[0][:160]
            what = f"raised {type(error).__name__}" + (f" ({told})" if told else "")
            raise ScoreError(explain(self.compare.name, what)) from error
        if not math.isfinite(found):
            what = f"is no finite number for {len(given)} answers"
            raise ScoreError(explain(self.compare.name, what, found, "take larger batches"))
        return found

    @contextmanager
    def gathering(self) -> Iterator[Gathered]:
        """Inside, completions are gathered, with what is right of each, and not scored."""
        self._gathered = ([], [])
        try:
            yield self._gathered
        finally:
            self._gathered = None
