"""Addressed noise: families, generator and addresses."""

from zopeft.noise.address import Noise, rounding_words, step_seed
from zopeft.noise.families import NOISES

__all__ = ["NOISES", "Noise", "rounding_words", "step_seed"]
