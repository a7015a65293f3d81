"""Controls: fine-tuners that know less than the one they are made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from zopeft.finetuner.bases import permuted, random_like
from zopeft.finetuner.bounded import nets_of
from zopeft.finetuner.controls import cycle

if TYPE_CHECKING:
    from zopeft.finetuner.artifact import FineTuner


def shuffled(finetuner: FineTuner, seed: int) -> FineTuner:
    """Returns the same networks and bases, each one serving another group.

    The networks are reassigned along one random cycle through all groups, so that none
    keeps its place; bases along a cycle through the groups of the same shape, where a
    shape that stands alone keeps its own. Rows of token embeddings that are scaled by
    frequency take those of other tokens.

    Args:
        finetuner: The fine-tuner.
        seed: Seed of the cycles and of the rows' order.
    """
    other = finetuner.copy()
    if other.config.rows == "frequency":
        other.config.rows_order = seed
    cycle(other.nets, seed)
    other.bases = permuted(finetuner.bases, finetuner.config.groups, _generator(seed))
    return _called(other, "shuffled", seed)


def with_random_bases(finetuner: FineTuner, seed: int) -> FineTuner:
    """Returns subspaces of the same ranks, in random directions."""
    other = finetuner.copy()
    other.bases = random_like(finetuner.bases, _generator(seed))
    return _called(other, "random bases", seed)


def untrained(finetuner: FineTuner, seed: int) -> FineTuner:
    """Returns the same configuration with nothing learned.

    Fresh networks for the same groups, of the same kind, sizes, features and normalisation;
    bounded ones start at the scale 1 whatever they read. Where the configuration has
    subspaces, they are of the same ranks in random directions. What its training has seen
    of signal and energy is left out, too.

    Args:
        finetuner: The fine-tuner.
        seed: Seed of the networks' start and of the directions.
    """
    other = finetuner.copy()
    other.nets = nets_of(other.config, _generator(seed))
    other.bases = random_like(finetuner.bases, _generator(seed))
    other.config.training, other.mask = {}, None
    return _called(other, "untrained", seed)


def without_bases(finetuner: FineTuner) -> FineTuner:
    """Returns the scales alone."""
    other = finetuner.copy()
    other.config.capacity, other.bases = "scales", {}
    other.config.groups = [replace(one, shape=None, kind="") for one in other.config.groups]
    return _called(other, "without bases", None)


def _called(other: FineTuner, control: str, seed: int | None) -> FineTuner:
    other.config.training = {**other.config.training, "control": control, "control_seed": seed}
    return other


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
