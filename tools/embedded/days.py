"""Days: what went well or badly for somebody. The ground of boolq."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded.scenes import KINDS, Fact
from embedded.world import PEOPLE, held_out

EVENTS: tuple[tuple[str, ...], tuple[str, ...]] = (
    (
        "{p} lost a shoe",
        "{p} broke a plate",
        "{p} missed the bus",
        "{p} failed the test",
        "{p} cried all evening",
        "{p} fell into the mud",
        "{p} heard bad news",
        "{p} burned the dinner",
        "{p} tore a coat",
        "{p} spilled the milk",
        "{p} had a bad cold",
        "{p} got wet in the rain",
        "a thief robbed {p}",
        "nobody helped {p}",
        "a wasp stung {p}",
        "the roof of {p} leaked",
    ),
    (
        "{p} won a prize",
        "{p} found a coin",
        "{p} made a new friend",
        "{p} passed the test",
        "{p} danced all evening",
        "{p} sang with joy",
        "{p} heard good news",
        "{p} baked a fine pie",
        "{p} got a present",
        "{p} smiled all day",
        "{p} met an old friend",
        "{p} slept in the sun",
        "everybody praised {p}",
        "a neighbour helped {p}",
        "the garden of {p} bloomed",
        "the plan of {p} worked",
    ),
)
"""What happens on a bad (0) and on a good (1) day."""

QUESTIONS = ("did {p} have a good day", "was it a good day for {p}", "did things go well for {p}")


@dataclass(frozen=True)
class Day:
    """A passage about somebody's day, and whether it was a good one."""

    text: str
    name: str
    label: int

    def question(self, rng: Random) -> str:
        """A question whose answer is yes on a good day, in lower case and without a mark."""
        return rng.choice(QUESTIONS).format(p=self.name)


def make_day(rng: Random, label: int, *, for_validation: bool = False) -> Day:
    """Make a passage of two events of one mood and a fact about somebody else.

    Args:
        rng: Source of chance.
        label: 0 for a bad day, 1 for a good one.
        for_validation: Whether the passage must be one that training never sees.
    """
    while True:
        person, other = rng.sample(PEOPLE, 2)
        sentences = [event.format(p=person.name) for event in rng.sample(EVENTS[label], 2)]
        kind = rng.choice([kind for kind in KINDS if kind.name != "mood"])
        sentences.append(Fact(other, kind, rng.choice(kind.values)).statement)
        rng.shuffle(sentences)
        text = " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)
        if held_out(text) == for_validation:
            return Day(text, person.name, label)
