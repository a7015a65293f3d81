"""Gradients of all ranks, added up while a backward pass makes them.

Each rank has some rows of the batch (`zopeft.meta.parts`), and the gradient of what they add to the
loss. What is learned from a gradient (squares, sketches, a clipped step) is not linear in it, so
the gradients themselves are added up, before anything looks at them: each rank then has the
gradient of the whole batch, the same bits on all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zopeft.blocks import Blocks
from zopeft.meta.gradients import Consumer, consumed, owners
from zopeft.ranks import ALONE, Ranks

Member = tuple[nn.Parameter, list[int]]
"""A parameter, and the indices of its blocks."""
BUCKET = 1 << 23
"""Numbers, at most, that are exchanged at a time: small gradients wait until there are as many."""


def backward(
    blocks: Blocks,
    consumer: Consumer,
    loss: Callable[[], Tensor],
    ranks: Ranks = ALONE,
    again: bool = False,
) -> float:
    """Hands the gradients of the loss of all ranks to `consumer`, one by one, on each rank.

    Args:
        blocks: The blocks, [N].
        consumer: Takes the gradients; it must not keep them.
        loss: Makes this rank's part of the loss, 0-dim; the parts add up to the loss.
        ranks: Who shares the loss.
        again: Whether there is to be another backward pass through the same forward.

    Returns:
        The loss.
    """
    summing = Summing(blocks, consumer, ranks) if ranks.several else None
    with consumed(blocks, summing or consumer), torch.enable_grad():
        mine = loss()
        if summing is not None:
            summing.loss = mine.detach()
        mine.backward(retain_graph=again)  # type: ignore[no-untyped-call]
        return float(mine.detach()) if summing is None else summing.finish()


class Summing:
    """A consumer of this rank's gradients that hands on the sums of all ranks'.

    The parameters are taken from the last to the first, as a backward pass comes to them, in groups
    of up to `BUCKET` numbers; a larger one is a group, which is added up in pieces. A group is
    exchanged as soon as it is there and those before it are gone: all ranks exchange the same
    groups in the same order, whatever their backward passes do. In memory are the gradients that
    wait, and one buffer.

    A parameter that no rank has a gradient for is not handed on, as with one process.

    Args:
        blocks: The blocks, [N].
        consumer: Takes the sums.
        ranks: Who has gradients.

    Attributes:
        loss: This rank's part of the loss, which goes with the first group.
    """

    def __init__(self, blocks: Blocks, consumer: Consumer, ranks: Ranks) -> None:
        self.ranks, self.loss = ranks, torch.zeros(())
        self._consumer = consumer
        self._groups = groups_of(list(reversed(owners(blocks).values())), BUCKET)
        self._found: dict[int, Tensor] = {}
        self._gone, self._total = 0, 0.0

    def __call__(self, parameter: nn.Parameter, indices: list[int], gradient: Tensor) -> None:
        """Takes one parameter's gradient."""
        self._found[id(parameter)] = gradient
        self._go_on(False)

    @torch.no_grad()
    def finish(self) -> float:
        """Exchanges what is left, where this rank has no gradient; returns the loss of all."""
        self._go_on(True)
        return self._total

    def _go_on(self, end: bool) -> None:
        for group in self._groups[self._gone :]:
            if not end and any(id(parameter) not in self._found for parameter, _ in group):
                return
            self._exchange(group)
            self._gone += 1

    def _exchange(self, group: list[Member]) -> None:
        """Adds up the gradients of a group, and who has them; hands on those that there are."""
        own = [self._found.pop(id(parameter), None) for parameter, _ in group]
        gradients = [
            parameter.new_zeros(parameter.shape) if one is None else one.contiguous()
            for (parameter, _), one in zip(group, own, strict=True)
        ]
        first = self._gone == 0
        loss = float(self.loss) if first else 0.0
        told = torch.tensor([*(float(one is not None) for one in own), loss])
        flat = [gradient.view(-1) for gradient in gradients]
        turns = [flat] if len(flat) > 1 else [[piece] for piece in flat[0].split(BUCKET)]
        told = self._summed(turns[0], told)
        for pieces in turns[1:]:
            self._summed(pieces, told[:0])
        *there, loss = told.tolist()
        self._total = loss if first else self._total
        for (parameter, indices), gradient, some in zip(group, gradients, there, strict=True):
            if some:
                self._consumer(parameter, indices, gradient)

    def _summed(self, pieces: list[Tensor], told: Tensor) -> Tensor:
        """Adds up pieces in place, in one exchange; returns the sums of what is told with them."""
        kind = wide(pieces[0].dtype)
        told = told.to(pieces[0].device)
        buffer = torch.cat([piece.to(kind) for piece in (*pieces, told)])
        sizes = [piece.numel() for piece in pieces]
        *sums, heard = self.ranks.summed(buffer).split([*sizes, len(told)])
        for piece, found in zip(pieces, sums, strict=True):
            piece.copy_(found)
        return heard


def wide(dtype: torch.dtype) -> torch.dtype:
    """Returns the type that numbers are added up in: fp32, or fp64 where they are fp64."""
    return torch.promote_types(dtype, torch.float32)


def groups_of(members: Sequence[Member], most: int) -> list[list[Member]]:
    """Puts neighbours of one type and on one device into groups.

    Args:
        members: Parameters and the indices of their blocks.
        most: Numbers of a group of more than one.
    """
    groups: list[list[Member]] = []
    size, before = 0, None
    for member in members:
        parameter = member[0]
        kind = (wide(parameter.dtype), parameter.device)
        if kind != before or size + parameter.numel() > most:
            groups.append([])
            size = 0
        groups[-1].append(member)
        size, before = size + parameter.numel(), kind
    return groups


def bytes_sent(blocks: Blocks, count: int) -> int:
    """Returns the bytes that each of `count` ranks sends, and receives, in a backward pass."""
    every = (parameter for parameter, _ in owners(blocks).values())
    return sum(p.numel() * wide(p.dtype).itemsize for p in every) * 2 * (count - 1) // count
