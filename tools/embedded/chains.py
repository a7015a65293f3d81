"""Chains of three events, each the cause of the next. The ground of copa."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded.world import PEOPLE, Person, capital, held_out

EVENTS: tuple[tuple[str, str, str], ...] = (
    ("{s} left {h} coat at home", "{s} got wet in the rain", "{s} caught a cold"),
    ("{s} ran after the bus", "{s} was out of breath", "{s} sat down on a bench"),
    ("{s} dropped the glass", "the glass broke", "{s} swept the floor"),
    ("{s} forgot the key", "the door stayed shut", "{s} climbed in through the window"),
    ("{s} studied all week", "{s} knew every answer", "{s} passed the test"),
    ("{s} stayed up all night", "{s} was sleepy in the morning", "{s} drank strong coffee"),
    ("{s} ate too much cake", "{s} had a sore stomach", "{s} lay down on the sofa"),
    ("{s} planted some seeds", "flowers grew in the garden", "bees came to the garden"),
    ("{s} left the milk in the sun", "the milk went bad", "{s} poured the milk away"),
    ("{s} kicked the ball hard", "the ball hit the window", "the neighbour shouted at {o}"),
    ("{s} saved money for a year", "{s} bought a new bike", "{s} rode to school each day"),
    ("{s} left the gate open", "the dog ran away", "{s} looked for the dog"),
    ("{s} touched the hot stove", "{s} burned {h} hand", "{s} put ice on {h} hand"),
    ("{s} slipped on the ice", "{s} broke {h} leg", "the doctor put {h} leg in plaster"),
    ("{s} lost {h} phone", "{s} missed an important call", "the boss was angry with {o}"),
    ("{s} forgot the bread in the oven", "the bread turned black", "smoke filled the kitchen"),
    ("{s} skipped breakfast", "{s} was hungry at noon", "{s} ordered a large lunch"),
    ("{s} won the race", "{s} got a medal", "{s} hung the medal on the wall"),
    ("{s} drove over a nail", "the tyre went flat", "{s} changed the wheel"),
    ("{s} trained every day", "{s} became strong", "{s} lifted the heavy box"),
    ("{s} read a scary book", "{s} had a bad dream", "{s} woke up screaming"),
    ("{s} walked in new shoes", "{s} got sore feet", "{s} put on soft slippers"),
    ("{s} forgot the birthday of a friend", "the friend was hurt", "{s} said sorry with flowers"),
    ("{s} took the wrong train", "{s} came to a strange town", "{s} asked a guard for the way"),
)
"""Cause, event, effect: ``{s}`` is the person, ``{o}`` and ``{h}`` its "him" and "his"."""


REVERSED = 0.85
"""Share of wrong choices that are right for the opposite question."""


@dataclass(frozen=True)
class Chain:
    """Three events in the life of a person."""

    person: Person
    number: int

    def event(self, place: int, *, named: bool) -> str:
        """One of the events as a clause without a full stop.

        Args:
            place: 0 for the cause, 1 for the event, 2 for the effect.
            named: Whether the person is called by name or by a pronoun.
        """
        person = self.person
        subject = person.name if named else person.subject
        return EVENTS[self.number][place].format(s=subject, o=person.object, h=person.possessive)

    def sentence(self, place: int, *, named: bool) -> str:
        """One of the events as a sentence."""
        return capital(self.event(place, named=named)) + "."


def make_chain(rng: Random, *, for_validation: bool = False) -> Chain:
    """Pick a person and a chain of events.

    Args:
        rng: Source of chance.
        for_validation: Whether the pair must be one that training never sees.
    """
    while True:
        chain = Chain(rng.choice(PEOPLE), rng.randrange(len(EVENTS)))
        if held_out(f"{chain.number}:{chain.person.name}") == for_validation:
            return chain


def distractor(chain: Chain, question: str, rng: Random) -> str:
    """A wrong choice beside the middle event of a chain.

    Args:
        chain: The chain of the premise.
        question: "cause" or "effect".
        rng: Source of chance.

    Returns:
        Most often the chain's event in the other direction of time, else an
        event of another chain.
    """
    if rng.random() < REVERSED:
        return chain.sentence(2 if question == "cause" else 0, named=False)
    number = rng.choice([number for number in range(len(EVENTS)) if number != chain.number])
    return Chain(chain.person, number).sentence(rng.choice((0, 2)), named=False)
