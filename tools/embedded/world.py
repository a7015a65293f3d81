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


def words(text: str, article: str = "") -> tuple[str, ...]:
    """Split a list of words at its spaces and put an article before each."""
    return tuple(article + word for word in text.split())


WOMEN: tuple[Person, ...] = tuple(
    Person(name, "she", "her", "her")
    for name in words("Ann Mia Eva Kate Lucy Rose Sara Nina Jane Ella")
)
MEN: tuple[Person, ...] = tuple(
    Person(name, "he", "him", "his")
    for name in words("Tom Ben Sam Max Jack Paul Leo Dan Bill Fred")
)
PEOPLE: tuple[Person, ...] = WOMEN + MEN

PLACES = words("market park beach school farm library station forest lake castle", "the ")
ANIMALS = words("fox dog cat horse bird frog mouse rabbit cow duck", "a ")
FOODS = words("soup bread cheese rice cake fish salad honey beans toast")
JOBS = words("baker doctor teacher pilot farmer nurse singer painter driver sailor", "a ")
MOODS = words("happy sad tired angry proud calm lonely bored scared hungry")
COLOURS = words("red blue green yellow black white brown pink grey purple")
THINGS = words("apples pears coins books stamps balls eggs shells")


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
