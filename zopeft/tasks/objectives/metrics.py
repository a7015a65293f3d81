"""Metrics by name: what a generated answer is worth, given the answers that are accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from zopeft.registry import Registry
from zopeft.tasks.answers import exact_match, f1, normalize

Metric = Callable[[str, Sequence[str]], float]
"""From an answer and the accepted ones to a number, 0 to 1."""


def contains(given: str, accepted: Sequence[str]) -> float:
    """Returns 1.0 if an accepted answer stands in the answer, both normalised, word for word."""
    ours = f" {normalize(given)} "
    return float(any(f" {normalize(one)} " in ours for one in accepted))


def rouge_l(given: str, accepted: Sequence[str]) -> float:
    """Returns the best F1 of the longest common subsequence of words.

    References:
        ROUGE: A Package for Automatic Evaluation of Summaries (Lin 2004), equations 2 to 4, with
        beta 1 and words as `normalize` leaves them.
    """
    ours = normalize(given).split()
    return max((_common_f1(ours, normalize(one).split()) for one in accepted), default=0.0)


def _common_f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    if not ours or not theirs:
        return float(list(ours) == list(theirs))
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for place, other in enumerate(theirs, 1):
            kept = lengths[place]
            lengths[place] = before + 1 if word == other else max(kept, lengths[place - 1])
            before = kept
    return 2.0 * lengths[-1] / (len(ours) + len(theirs))


def similarity(given: str, accepted: Sequence[str]) -> float:
    """Returns the best share of characters in common with an accepted answer, in order."""
    ratios = (
        SequenceMatcher(None, normalize(given), normalize(one), autojunk=False).ratio()
        for one in accepted
    )
    return max(ratios, default=0.0)


METRICS = Registry(
    "metric",
    {
        "accuracy": exact_match,
        "exact_match": exact_match,
        "f1": f1,
        "contains": contains,
        "rouge_l": rouge_l,
        "similarity": similarity,
    },
    about={
        "accuracy": "the right option is chosen; of free answers, exact match",
        "exact_match": "the answer is an accepted one, once normalised",
        "f1": "F1 of the words in common with an accepted answer",
        "contains": "an accepted answer stands in the answer",
        "rouge_l": "F1 of the longest common subsequence of words",
        "similarity": "characters in common with an accepted answer, in order",
    },
)
"""Metric name to function."""
