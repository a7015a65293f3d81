"""Scenes: who went where, ate what, felt how. The ground of squad and cb."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded import world
from embedded.world import PEOPLE, Person


@dataclass(frozen=True)
class Kind:
    """One kind of fact: its values and the ways to say it and to ask for it.

    In the patterns ``{p}`` is the person's name and ``{v}`` the value.
    """

    name: str
    values: tuple[str, ...]
    statement: str
    ask_value: str
    ask_person: str
    denial: str
    future: str


KINDS: tuple[Kind, ...] = (
    Kind(
        "place",
        world.PLACES,
        "{p} went to {v}",
        "Where did {p} go?",
        "Who went to {v}?",
        "{p} did not go to {v}",
        "{p} will go to {v} tomorrow",
    ),
    Kind(
        "animal",
        world.ANIMALS,
        "{p} saw {v}",
        "What animal did {p} see?",
        "Who saw {v}?",
        "{p} did not see {v}",
        "{p} will see {v} tomorrow",
    ),
    Kind(
        "food",
        world.FOODS,
        "{p} ate {v}",
        "What did {p} eat?",
        "Who ate {v}?",
        "{p} did not eat {v}",
        "{p} will eat {v} tomorrow",
    ),
    Kind(
        "job",
        world.JOBS,
        "{p} is {v}",
        "What is the job of {p}?",
        "Who is {v}?",
        "{p} is not {v}",
        "{p} will be {v} one day",
    ),
    Kind(
        "mood",
        world.MOODS,
        "{p} felt {v}",
        "How did {p} feel?",
        "Who felt {v}?",
        "{p} did not feel {v}",
        "{p} will feel {v} tomorrow",
    ),
    Kind(
        "hat",
        world.COLOURS,
        "{p} has a hat that is {v}",
        "What colour is the hat of {p}?",
        "Who has a hat that is {v}?",
        "{p} has no hat that is {v}",
        "{p} will have a hat that is {v} one day",
    ),
)


@dataclass(frozen=True)
class Fact:
    """A person, a kind and a value, for example Mia, food, soup."""

    person: Person
    kind: Kind
    value: str

    def _fill(self, pattern: str) -> str:
        return pattern.format(p=self.person.name, v=self.value)

    @property
    def statement(self) -> str:
        """The fact as a clause without a full stop."""
        return self._fill(self.kind.statement)

    def claim(self, label: int) -> str:
        """A claim that follows from the fact (0), conflicts with it (1) or leaves it open (2)."""
        return self._fill((self.kind.statement, self.kind.denial, self.kind.future)[label])

    @property
    def value_question(self) -> str:
        """The question whose answer is the value."""
        return self._fill(self.kind.ask_value)

    @property
    def person_question(self) -> str:
        """The question whose answer is the person's name."""
        return self._fill(self.kind.ask_person)


@dataclass(frozen=True)
class Scene:
    """A few facts about a few people, in the order in which they are told."""

    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The scene as sentences."""
        return " ".join(f"{fact.statement}." for fact in self.facts)

    @property
    def joined(self) -> str:
        """The scene as one sentence."""
        return " and ".join(fact.statement for fact in self.facts) + "."

    @property
    def title(self) -> str:
        """The names of its people."""
        return " and ".join(dict.fromkeys(fact.person.name for fact in self.facts))

    def question(self, fact: Fact, rng: Random) -> tuple[str, str]:
        """Ask for the value or the person of one of the facts.

        Returns:
            The question and its answer, a span of the text.
        """
        if rng.random() < 0.75:
            return fact.value_question, fact.value
        return fact.person_question, fact.person.name


PAIRED = 0.25
"""Share of scenes in which both people have facts of the same kinds, the harder ones."""


def make_scene(rng: Random, size: int, *, for_validation: bool = False) -> Scene:
    """Make a scene of one or two people with ``size`` facts, no value in it twice.

    Args:
        rng: Source of chance.
        size: Number of facts, 1 to 4.
        for_validation: Whether the scene must be one that training never sees.

    Returns:
        The scene.
    """
    while True:
        pair = rng.sample(PEOPLE, 2)
        if rng.random() < PAIRED:
            slots = [(person, kind) for kind in rng.sample(KINDS, 2) for person in pair]
            slots = rng.sample(slots, size)
        else:
            slots = [(rng.choice(pair), kind) for kind in rng.sample(KINDS, size)]
        used: set[str] = set()
        facts: list[Fact] = []
        for person, kind in slots:
            value = rng.choice([value for value in kind.values if value not in used])
            used.add(value)
            facts.append(Fact(person, kind, value))
        scene = Scene(tuple(facts))
        if world.held_out(scene.text) == for_validation:
            return scene
