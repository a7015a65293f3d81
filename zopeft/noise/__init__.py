"""Addressed noise: families, generator and addresses."""

from zopeft.noise.address import Noise, direction_seed, role_seed, rounding_words, step_seed
from zopeft.noise.families import FAMILIES, NOISES

__all__ = [
    "FAMILIES",
    "NOISES",
    "Noise",
    "direction_seed",
    "role_seed",
    "rounding_words",
    "step_seed",
]
