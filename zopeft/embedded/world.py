"""The people and things of the small world, and what is held out of training."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

HELD_OUT_SHARE = 8
"""One text in this many is kept for validation only."""


@dataclass(frozen=True)
class Person:
    """A person with a one-word name and the pronouns that go with it."""

    name: str
    subject: str
    object: str
    possessive: str


_WOMEN = "Ann Mia Eva Kate Lucy Rose Sara Nina Jane Ella Amy Ruth Clara Emma Lily Zoe".split()
_MEN = "Tom Ben Sam Max Jack Paul Leo Dan Bill Mark Fred Hugo Carl Nick Adam Otto".split()

WOMEN: tuple[Person, ...] = tuple(Person(name, "she", "her", "her") for name in _WOMEN)
MEN: tuple[Person, ...] = tuple(Person(name, "he", "him", "his") for name in _MEN)
PEOPLE: tuple[Person, ...] = WOMEN + MEN

PLACES = tuple(
    f"the {word}"
    for word in (
        "market park beach school farm library station garden museum harbour forest lake "
        "church bakery castle theatre"
    ).split()
)
ANIMALS = tuple(f"a {word}" for word in "fox dog cat horse bird frog mouse rabbit cow duck wolf bear snake goat".split())
FOODS = tuple("soup bread cheese rice cake fish salad pasta honey jam beans toast corn pie".split())
JOBS = tuple(
    f"a {word}"
    for word in "baker doctor teacher pilot farmer nurse singer painter driver cook sailor writer guard lawyer".split()
)
MOODS = tuple("happy sad tired angry proud calm lonely bored scared hungry brave shy sick curious".split())
COLOURS = tuple("red blue green yellow black white brown pink grey purple orange golden".split())
THINGS = tuple("apples pears coins books stamps balls eggs shells cards keys stones cups".split())


def held_out(key: str) -> bool:
    """Whether a text belongs to validation only.

    The rule is a checksum of the text itself, so the training rows and the
    pretraining text can be made apart from the validation rows and still never
    meet them.

    Args:
        key: The text (or a name of it) that must not be seen in training.

    Returns:
        True for one key in ``HELD_OUT_SHARE``.
    """
    return zlib.crc32(key.encode("utf-8")) % HELD_OUT_SHARE == 0


def capital(text: str) -> str:
    """Return ``text`` with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]
