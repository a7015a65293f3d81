"""Ranks: the processes that make one run together, and what they tell each other."""

from zopeft.ranks.ranks import ALONE, Ranks, begin, current, leads, several

__all__ = ["ALONE", "Ranks", "begin", "current", "leads", "several"]
