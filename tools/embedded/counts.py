"""Counts: how many things people have. The ground of drop."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded.world import PEOPLE, THINGS, held_out

LARGEST = 7
"""Largest number that a person has."""


@dataclass(frozen=True)
class Count:
    """Two people who have some of the same things, and one who has others."""

    first: str
    second: str
    third: str
    things: str
    other_things: str
    numbers: tuple[int, int, int]
    order: tuple[int, int, int]

    @property
    def text(self) -> str:
        """The passage."""
        first, second, third = self.numbers
        sentences = (
            f"{self.first} has {first} {self.things}.",
            f"{self.second} has {second} {self.things}.",
            f"{self.third} has {third} {self.other_things}.",
        )
        return " ".join(sentences[index] for index in self.order)

    def questions(self) -> tuple[tuple[str, str, str], ...]:
        """All questions on the passage.

        Returns:
            Question, answer and the answer's type ("number" or "span").
        """
        first, second, third = self.numbers
        more, fewer = (self.first, self.second) if first > second else (self.second, self.first)
        return (
            (
                f"How many {self.things} do {self.first} and {self.second} have together?",
                str(first + second),
                "number",
            ),
            (f"Who has more {self.things}?", more, "span"),
            (f"Who has fewer {self.things}?", fewer, "span"),
            (f"How many {self.things} does {self.first} have?", str(first), "number"),
            (f"How many {self.things} does {self.second} have?", str(second), "number"),
            (f"How many {self.other_things} does {self.third} have?", str(third), "number"),
            (f"Who has {third} {self.other_things}?", self.third, "span"),
        )


def make_count(rng: Random, *, for_validation: bool = False) -> Count:
    """Make a passage of three sentences with numbers from 2 to ``LARGEST``.

    Args:
        rng: Source of chance.
        for_validation: Whether the passage must be one that training never sees.

    Returns:
        The passage; its first two numbers differ.
    """
    while True:
        names = [person.name for person in rng.sample(PEOPLE, 3)]
        things, other_things = rng.sample(THINGS, 2)
        first, second = rng.sample(range(2, LARGEST + 1), 2)
        third = rng.randint(2, LARGEST)
        order = [0, 1, 2]
        rng.shuffle(order)
        count = Count(
            names[0],
            names[1],
            names[2],
            things,
            other_things,
            (first, second, third),
            (order[0], order[1], order[2]),
        )
        if held_out(count.text) == for_validation:
            return count
