"""Ranks: the processes that make one run together, and what they tell each other."""

from zopeft.ranks.ranks import ALONE, Ranks, begin, current, leads

__all__ = ["ALONE", "Ranks", "begin", "current", "leads"]
