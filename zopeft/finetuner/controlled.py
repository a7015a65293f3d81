"""Controls: fine-tuners that know less than the one they are made from, and how far they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch

from zopeft.finetuner.bases import permuted, random_like
from zopeft.finetuner.bounded import nets_of
from zopeft.finetuner.controls import cycle, distance
from zopeft.finetuner.stored import Stored


class Controlled(Stored):
    """A fine-tuner that can be compared with controls of itself; arguments as of `Stored`."""

    def shuffled(self, seed: int) -> Self:
        """Returns a control: the same networks and bases, each one serving another group.

        The networks are reassigned along one random cycle through all groups, so that none
        keeps its place; bases along a cycle through the groups of the same shape, where a
        shape that stands alone keeps its own. Rows of token embeddings that are scaled by
        frequency take those of other tokens.

        Args:
            seed: Seed of the cycles and of the rows' order.
        """
        other = self.copy()
        if self.config.rows == "frequency":
            other.config.rows_order = seed
        cycle(other.nets, seed)
        other.bases = permuted(self.bases, self.config.groups, _generator(seed))
        return other._called("shuffled", seed)

    def with_random_bases(self, seed: int) -> Self:
        """Returns a control: subspaces of the same ranks, in random directions.

        Args:
            seed: Seed of the directions.
        """
        other = self.copy()
        other.bases = random_like(self.bases, _generator(seed))
        return other._called("random bases", seed)

    def untrained(self, seed: int) -> Self:
        """Returns a control: the same configuration with nothing learned.

        Fresh networks for the same groups, of the same kind, sizes, features and normalisation;
        bounded ones start at the scale 1 whatever they read. Where the configuration has
        subspaces, they are of the same ranks in random directions. What its training has seen
        of signal and energy is left out, too.

        Args:
            seed: Seed of the networks' start and of the directions.
        """
        other = self.copy()
        other.nets = nets_of(other.config, _generator(seed))
        other.bases = random_like(self.bases, _generator(seed))
        other.config.training = {}
        return other._called("untrained", seed)

    def without_bases(self) -> Self:
        """Returns a control: the scales alone."""
        other = self.copy()
        other.config.capacity, other.bases = "scales", {}
        other.config.groups = [replace(one, shape=None, kind="") for one in other.config.groups]
        return other._called("without bases", None)

    def _called(self, control: str, seed: int | None) -> Self:
        self.config.training = {**self.config.training, "control": control, "control_seed": seed}
        return self

    def distance(self, other: Stored) -> dict[str, Any]:
        """Says how far these networks are from another's, ``||w - w'|| / ||w'||``.

        Args:
            other: A fine-tuner with the same numbers of groups, features and hidden units, for
                example the start of its training.

        Returns:
            ``total``, over all networks, and ``groups``, a list in the order of the table.

        Raises:
            InputError: The two are of different sizes.
        """
        return distance(self.nets, other.nets)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
