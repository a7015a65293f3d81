"""Modules whose weights others read: found after a probe, and shown all through later ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zopeft.blocks import Block
from zopeft.blocks.offloaded import Offload
from zopeft.engine.reads import Reads
from zopeft.engine.swaps import Swaps
from zopeft.errors import input_error


class Residents:
    """Which modules ran in a probe, and which were read elsewhere than in their own forward.

    Args:
        indices: Where the blocks stand among all blocks of the engine, [n].
        blocks: The blocks, [n].
        swaps: What knows where each block is read.
        offload: The model's offloaded tensors.
        reads: What watches the forward passes.

    Attributes:
        modules: Those that get scratch weights for the whole of a probe.
        shown: Those that the latest probe has had run with what it shows. Of others, which a
            direction of some blocks leaves as they are, nothing is missed.
        reached: Those of them whose own forward has run.
        settled: Whether all that is read elsewhere has been found.
    """

    def __init__(
        self,
        indices: Sequence[int],
        blocks: Sequence[Block],
        swaps: Swaps,
        offload: Offload,
        reads: Reads,
    ) -> None:
        self.indices, self.blocks, self.swaps = indices, blocks, swaps
        self.offload, self.reads = offload, reads
        self.modules: set[nn.Module] = set()
        self.shown: set[nn.Module] = set()
        self.reached: set[nn.Module] = set()
        self.settled = False

    def numbers(self, module: nn.Module) -> frozenset[int]:
        """Returns the indices of a module's blocks, among all of the engine's."""
        return frozenset(self.indices[place.number] for place in self.swaps.places[module])

    def note(self) -> None:
        """Tells what watches the forwards which blocks the latest probe has read."""
        if self.reads.latest:
            self.reads.note(n for module in self.reached for n in self.numbers(module))

    def missed(self) -> set[nn.Module]:
        """Returns the modules whose weights the latest probe has read unperturbed."""
        read, outside = self.reads.latest, self.reads.outside
        if not read:
            return set()
        found = set()
        for module in self.shown - self.modules:
            numbers = self.numbers(module)
            if (module not in self.reached and numbers & read) or numbers & outside:
                found.add(module)
        return self.offload.always_there(found)

    def settle(self) -> bool:
        """Checks after a probe that what was read ran through its module's own forward.

        A module whose parameters are read by its parent, instead or as well, gets its
        scratch weights for the whole of each later probe. Offloaded ones are there in their
        own forward alone: a module that has not run was not used.

        Returns:
            True if the probe just done has missed such weights and must be done again.

        Raises:
            InputError: Something reads the weights themselves, whatever its module holds.
        """
        missed = self.missed()
        if not self.settled:
            self._refuse_references()
        self.settled = self.settled or not missed
        self.modules |= missed
        return bool(missed)

    def _refuse_references(self) -> None:
        for module in self.modules:
            for place in self.swaps.places[module]:
                if self.indices[place.number] in self.reads.outside:
                    raise input_error(
                        "model",
                        "a trained weight is read through a reference of its own",
                        self.blocks[place.number].name,
                        "read it from its module, or take carrier='flat'",
                    )
