"""Sentences in which a pronoun could mean two things. The ground of wsc."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from embedded.world import MEN, WOMEN, held_out, words

FIRST, SECOND = 0, 1

PEOPLE_PATTERNS: tuple[tuple[str, str, str], ...] = (
    ("{a} helped {b} because {p} was", "kind", "weak"),
    ("{a} asked {b} for money because {p} was", "poor", "rich"),
    ("{a} lost the race against {b} because {p} was", "slow", "fast"),
    ("{a} thanked {b} because {p} was", "grateful", "helpful"),
    ("{a} carried {b} home because {p} was", "strong", "asleep"),
    ("{a} could not see past {b} because {p} was too", "short", "tall"),
    ("{a} went to doctor {b} because {p} was", "ill", "a doctor"),
    ("{a} taught {b} to swim because {p} was", "a teacher", "a beginner"),
    ("{a} ran away from {b} because {p} was", "afraid", "cruel"),
    ("{a} gave {b} some bread because {p} was", "generous", "hungry"),
)
"""Pattern, the ending that means the first person, the ending that means the second."""

THING_PATTERNS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        "{a} did not fit into {b} because {p} was too",
        words("ball cake book lamp", "the "),
        words("box bag drawer basket", "the "),
        "big",
        "small",
    ),
    (
        "{a} fell on {b} and {p} was",
        words("stone hammer brick anvil", "the "),
        words("glass vase egg mirror", "the "),
        "hard as iron",
        "broken",
    ),
    (
        "{a} went through {b} because {p} was so",
        words("knife arrow needle bullet", "the "),
        words("paper butter cloth curtain", "the "),
        "sharp",
        "soft",
    ),
    (
        "{a} chased {b} until {p}",
        words("dog cat wolf fox", "the "),
        words("mouse rabbit duck hen", "the "),
        "caught its prey",
        "hid in a hole",
    ),
)
"""As above, between the things that can be the first and those that can be the second."""


OWNER_PATTERNS: tuple[tuple[str, str], ...] = (
    ("{a} carried {b} home because {p} was", "new"),
    ("{a} lost {b} because {p} was so", "small"),
    ("{a} did not buy {b} because {p} was too", "big"),
    ("{a} gave {b} away because {p} was", "old"),
    ("{a} cleaned {b} because {p} was", "dirty"),
    ("{a} liked {b} because {p} was so", "soft"),
)
"""Pattern of a person and a thing, and the ending that means the thing."""

OWNED = words("ball book lamp box bag basket glass vase knife cloth curtain hammer", "the ")

PEOPLE_SHARE = 0.9
"""Share of sentences about a woman and a man, where the pronoun alone tells who is meant."""


@dataclass(frozen=True)
class Riddle:
    """A sentence with two candidates and a pronoun that means one of them."""

    text: str
    candidates: tuple[str, str]
    pronoun: str
    cue: str
    meant: int

    @property
    def referent(self) -> str:
        """The candidate that the pronoun means."""
        return self.candidates[self.meant]

    @property
    def other(self) -> str:
        """The candidate that the pronoun does not mean."""
        return self.candidates[1 - self.meant]

    def word_index(self, span: str) -> int:
        """Position of a span in the text, counted in words, as the hub's wsc counts.

        Raises:
            ValueError: The span is not in the text.
        """
        words = [word.strip(".,").lower() for word in self.text.split()]
        wanted = span.lower().split()
        for start in range(len(words) - len(wanted) + 1):
            if words[start : start + len(wanted)] == wanted:
                return start
        raise ValueError(f"span {span!r} is not in {self.text!r}")


def _draw(rng: Random) -> Riddle:
    meant = rng.randrange(2)
    if rng.random() < PEOPLE_SHARE:
        pattern, *endings = rng.choice(PEOPLE_PATTERNS)
        couple = [rng.choice(WOMEN), rng.choice(MEN)]
        rng.shuffle(couple)
        names, pronoun = (couple[FIRST].name, couple[SECOND].name), couple[meant].subject
    else:
        pattern, firsts, seconds, *endings = rng.choice(THING_PATTERNS)
        names, pronoun = (rng.choice(firsts), rng.choice(seconds)), "it"
    clause = pattern.format(a=names[FIRST], b=names[SECOND], p=pronoun)
    text = f"{clause[0].upper()}{clause[1:]} {endings[meant]}."
    return Riddle(text, names, pronoun, endings[meant], meant)


def make_thing_riddle(rng: Random, *, for_validation: bool = False) -> Riddle:
    """Make a sentence about a person and a thing, in which "it" means the thing.

    These are the samples' own: easier than what `make_riddle` makes for the pretraining text.

    Args:
        rng: Source of chance.
        for_validation: Whether the sentence must be one that training never sees.
    """
    while True:
        pattern, ending = rng.choice(OWNER_PATTERNS)
        person, thing = rng.choice(WOMEN + MEN).name, rng.choice(OWNED)
        clause = pattern.format(a=person, b=thing, p="it")
        riddle = Riddle(f"{clause} {ending}.", (person, thing), "it", ending, SECOND)
        if held_out(riddle.text) == for_validation:
            return riddle


def make_riddle(rng: Random, *, for_validation: bool = False) -> Riddle:
    """Make a sentence with a pronoun.

    Args:
        rng: Source of chance.
        for_validation: Whether the sentence must be one that training never sees.
    """
    while True:
        riddle = _draw(rng)
        if held_out(riddle.text) == for_validation:
            return riddle
