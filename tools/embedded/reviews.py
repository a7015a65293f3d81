"""Short reviews with a mood. The ground of sst2."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded.world import held_out, words

WORDS: tuple[tuple[str, ...], tuple[str, ...]] = (
    words(
        "dull slow boring silly cold flat messy empty weak noisy ugly stale clumsy bland lazy awful"
    ),
    words(
        "warm funny lovely clever bright charming gripping fresh moving sweet tender witty rich "
        "lively superb"
    ),
)
"""Adjectives of a bad (0) and of a good (1) review."""

NOUNS = words("film story plot music acting ending cast script hero dialogue")

CLOSINGS: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("I hated it", "I want my money back", "I fell asleep", "nobody clapped"),
    ("I loved it", "I would see it again", "I cheered", "everybody clapped"),
)
"""What people say after a bad (0) and a good (1) review, beside the verdict itself."""


@dataclass(frozen=True)
class Review:
    """A sentence and its mood: 0 bad, 1 good."""

    text: str
    label: int


def _draw(rng: Random, label: int) -> str:
    mine, opposite = WORDS[label], WORDS[1 - label]
    word, second = rng.sample(mine, 2)
    contrary = rng.choice(opposite)
    noun, other = rng.sample(NOUNS, 2)
    patterns = (
        f"the {noun} is {word} and the {other} is {second} .",
        f"a {word} {noun} with a {second} {other} .",
        f"{word} and {second} from start to finish .",
        f"the {noun} is never {contrary} .",
        f"not a {contrary} {noun} , and the {other} is {word} .",
        f"the {noun} seems {contrary} at first but the {other} is {word} .",
        f"i found the {noun} {word} and {second} .",
        f"what a {word} {noun} !",
    )
    return rng.choice(patterns)


def make_review(rng: Random, label: int, *, for_validation: bool = False) -> Review:
    """Make a review of the wanted mood.

    Args:
        rng: Source of chance.
        label: 0 for a bad review, 1 for a good one.
        for_validation: Whether the review must be one that training never sees.
    """
    while True:
        text = _draw(rng, label)
        if held_out(text) == for_validation:
            return Review(text, label)
