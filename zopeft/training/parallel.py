"""Losses from the processes of a run: rows of the batch shared out, or probes, or both.

Each process runs its part and says its losses to the first one. That one makes of them the losses
of the step, and says those to all: they are all that is sent, and the same bits for everybody. What
follows from them (learning rate, projected gradients, update) each makes for itself; a fingerprint
of the weights, compared now and then, tells whether they are still the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.engine.direction import Probe
from zopeft.errors import run_error
from zopeft.journal.start import fingerprint
from zopeft.optim.executor import InProcess
from zopeft.probing.closure import Closure
from zopeft.probing.examples import Hearing, Told, hearing
from zopeft.probing.probing import Probing
from zopeft.ranks import Ranks
from zopeft.training.grid import Grid, dealt


class Parallel(InProcess):
    """Forward passes on several processes.

    With one row of the grid the losses have the bits that one process has alone, as long as it
    does not stack them: each is that of a forward of its own over the whole batch.

    Args:
        engine: The engine over the blocks to train.
        probing: What runs plain probes.
        ranks: The processes.
        grid: Who does what.
        here: Has the closure return this process's own loss inside, not that of all.
    """

    def __init__(
        self,
        engine: Engine,
        probing: Probing,
        ranks: Ranks,
        grid: Grid,
        here: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(engine, probing)
        self.ranks, self.grid, self.here = ranks, grid, here

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `Executor.losses`; the passes are those of all columns of the grid."""
        shares = dealt(probes, self.grid.columns)
        most = max(map(len, shares))
        said = torch.full((most + 1,), torch.nan)
        said[most] = 0.0
        row, column = self.grid.place(self.ranks.number)
        if row >= 0 and shares[column]:
            own = [probes[number] for number in shares[column]]
            with self.here():
                found, passes = super().losses(own, closure)
            said[: len(own)] = found.detach().float().cpu()
            said[most] = passes
        told = hearing()
        if told is not None and self.grid.columns > 1:
            self._share(told, shares, len(probes))
        every = self.ranks.gathered(said)
        result = torch.empty(len(probes) + 1)
        if every is not None:
            result = self._put_together(every, shares, len(probes))
        result = self.ranks.spread(result)
        return result[:-1], int(result[-1])

    def _share(self, heard: Hearing, shares: list[list[int]], count: int) -> None:
        """Has the first process know what the examples of its batch have told to all columns."""
        row, column = self.grid.place(self.ranks.number)
        own = len(shares[column]) if row >= 0 else 0
        mine = heard.of(own) if own else None
        heard.forwards = [None]
        size = 0 if mine is None else len(mine.weights)
        sizes = self.ranks.compared(torch.tensor([size]))[:, 0]
        most, widest = max(map(len, shares)), int(sizes.max())
        if not widest:
            return
        said = torch.zeros(most + 1, widest)
        if mine is not None:
            said[:own, :size], said[most, :size] = mine.losses, mine.weights
        every = self.ranks.gathered(said)
        used = [number for number, share in enumerate(shares) if share]
        if every is None or {int(sizes[number]) for number in used} != {size} or not size:
            return
        losses, weights = torch.empty(count, size), every[0, most, :size]
        for number in reversed(used):
            losses[shares[number]] = every[number, : len(shares[number]), :size]
        heard.forwards = [Told(losses, weights, losses @ weights)]

    def _put_together(self, every: Tensor, shares: list[list[int]], count: int) -> Tensor:
        """Returns the losses [P] and the passes of a round, from what each process said."""
        rows, columns = self.grid.rows, self.grid.columns
        by_place = every[: rows * columns].view(rows, columns, -1)
        losses = torch.empty(rows, count)
        # Of what several columns have run, the first one's counts.
        for column in reversed(range(columns)):
            losses[:, shares[column]] = by_place[:, column, : len(shares[column])]
        by_column = by_place[0, :, -1].clone()
        doubled = sum(len(share) for share in shares) - count
        if columns > 1 and doubled == count * (columns - 1):
            # All of them have done the same.
            by_column[1:] = 0.0
            doubled = 0
        passes = (by_column.sum() - doubled).reshape(1)
        return torch.cat([losses[0] if rows == 1 else losses.mean(0), passes])

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """See `Executor.agreed`: what the first process has seen."""
        if not self.ranks.several:
            return seen
        return self.ranks.spread(torch.from_numpy(np.ascontiguousarray(seen))).numpy()


DRIFTED = "start again with --resume auto: weights are made again from start and journal"


def check_weights(ranks: Ranks, blocks: Blocks, when: str, do: str = DRIFTED) -> None:
    """Refuses to go on where a process holds other weights than the first one.

    Args:
        ranks: The processes.
        blocks: What is trained.
        when: After which step, for the message.
        do: What to do, for the message.

    Raises:
        RunError: One does; it is named.
    """
    if not ranks.several:
        return
    mine = fingerprint(blocks)
    found = ranks.compared(torch.tensor([int(mine, 16) - (1 << 63)]))[:, 0].tolist()
    other = [number for number, one in enumerate(found) if one != found[0]]
    if other:
        prints = [f"{one + (1 << 63):016x}" for one in found]
        many = ", ".join(f"rank {number} ({prints[number]})" for number in other[:8])
        verb = "hold" if len(other) > 1 else "holds"
        raise run_error(
            "ranks",
            f"{many} {verb} other weights than rank 0 ({prints[0]}) {when}",
            None,
            do,
        )
