"""Addressed noise: families, generator and addresses."""

from zopeft.noise.address import Noise, rounding_words, step_seed
from zopeft.noise.families import FAMILIES, NOISES

__all__ = ["FAMILIES", "NOISES", "Noise", "rounding_words", "step_seed"]
