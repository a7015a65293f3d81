"""Answers: F1 and exact match of free text."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(answer: str) -> str:
    """Returns the answer in lower case, without punctuation, articles and extra spaces.

    References:
        SQuAD: 100,000+ Questions for Machine Comprehension of Text (Rajpurkar et al. 2016),
        section 6.1.
    """
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(given: str, accepted: Sequence[str]) -> float:
    """Returns 1.0 if the answer equals any accepted one once normalised, else 0.0."""
    return float(normalize(given) in {normalize(answer) for answer in accepted})


def f1(given: str, accepted: Sequence[str]) -> float:
    """Returns the best word F1 of the answer against each accepted one, 0 to 1.

    Two answers that are both empty once normalised agree (F1 1), as in SQuAD 2's scorer;
    an accepted answer like "The" would otherwise be out of reach.
    """
    return max((_f1(normalize(given), normalize(answer)) for answer in accepted), default=0.0)


def _f1(given: str, right: str) -> float:
    ours, theirs = given.split(), right.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2.0 * common / (len(ours) + len(theirs))
