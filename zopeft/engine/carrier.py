"""What holds weights: the protocol that the engine knows of them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from zopeft.engine.bundles import Group
from zopeft.engine.direction import Direction, Probe
from zopeft.engine.vector import Vector
from zopeft.errors import InputError
from zopeft.kernels.plain_backend import Statistics


class UnstackableError(Exception):
    """A forward that cannot be run for several probes at once.

    Args:
        reason: Why not.
        always: Whether that is so for every batch.
    """

    def __init__(self, reason: str, always: bool) -> None:
        super().__init__(reason)
        self.always = always


class CopiedBatch(Protocol):
    """P copies of a batch in one forward."""

    def dimension(self, module: nn.Module, inputs: Tensor, count: int) -> int:
        """Returns the dimension along which the copies lie in a layer's input and output.

        Raises:
            UnstackableError: The layer does not see them one below the other.
        """
        ...


class Carrier(Protocol):
    """Some blocks' weights: shown to forward passes, written, mapped and measured.

    What has a body here is what holds for weights that are read where they lie, in the dtype
    that they are stored in.

    Attributes:
        indices: Where the blocks stand among all blocks of the engine, [n], ascending.
        groups: Small blocks that a map may work on as one row.
    """

    indices: list[int]
    groups: Sequence[Group] = ()

    def perturbed(self, direction: Vector, step: float) -> AbstractContextManager[None]:
        """Shows ``w + step * u`` to the forwards inside; afterwards all is as before."""
        ...

    def replaced(self) -> InputError | None:
        """Returns what is wrong where a layer no longer reads what was shown; else None.

        To be asked after the first probe; the weights are then where they were.
        """
        return None

    @property
    def settled(self) -> bool:
        """Whether all that is read elsewhere than by its own layer has been found."""
        return True

    def settle(self) -> bool:
        """Looks after a probe for weights that were read unperturbed.

        Returns:
            True if the probe just done missed some and has to be done again.
        """
        return False

    def show_whole(self) -> None:
        """From now on shows all weights at once: the forwards run compiled code.

        Raises:
            InputError: That cannot be.
        """
        return

    @property
    def by_layer(self) -> bool:
        """Whether what `stacked` gives is for the layers to apply, each to its input."""
        return False

    @property
    def unstackable(self) -> str:
        """Why several probes cannot share a forward; "" if they can, as far as is known here."""
        ...

    @property
    def twinned(self) -> bool:
        """Whether layers have weights of their own for each probe of a shared forward."""
        return False

    @property
    def ungroupable(self) -> str:
        """Why patterns of one direction (`Flips`) cannot share a forward; "" if they can."""
        ...

    def stacked(
        self, probes: Sequence[Probe], copies: CopiedBatch
    ) -> AbstractContextManager[Mapping[int, Tensor]]:
        """Shows ``w + step * u`` of probe p to copy p of the batch.

        Gives what must be shown by others: P weights [P, ...] by the ``id`` of a parameter.

        Raises:
            UnstackableError: By a forward inside, if it cannot be.
        """
        ...

    def adopt(self) -> None:
        """Takes over weights that were changed outside."""
        return

    def update(self, directions: Sequence[Direction], coefficients: Tensor, decays: Tensor) -> None:
        """Writes ``decay * w + sum_k coefficient_k * u_k``; [K, N] and [N], float64."""
        ...

    def stored(self, index: int) -> Tensor:
        """Returns a block's weights in its shape, to be read alone."""
        ...

    def edited(self, index: int, seed: int) -> AbstractContextManager[Tensor]:
        """Gives a block's weights to be changed in place; `finish` makes them seen.

        Args:
            index: The block.
            seed: 64-bit key of the step: it addresses what rounding is left to the carrier.
        """
        ...

    @property
    def at_once(self) -> bool:
        """Whether many blocks may be `edited` at once."""
        return True

    def finish(self) -> None:
        """Ends a round of `edited`."""
        return

    def statistics(self) -> Statistics:
        """Returns mean and unbiased variance of each block's weights, float64 [n]."""
        ...

    def state(self) -> Tensor | None:
        """Returns what the weights themselves cannot hold; None for nothing."""
        return None

    def load_state(self, state: Tensor) -> None:
        """Takes what `state` gave."""
        return
