"""What a run's directions are made of: a noise by name, and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zopeft.blocks import Blocks
from zopeft.engine import Engine
from zopeft.engine.shapes import LowRank, Shape, fingerprint
from zopeft.errors import input_error
from zopeft.noise import NOISES


@dataclass(frozen=True)
class Directions:
    """A noise's name taken apart, and all that must agree for a run to be repeated.

    Args:
        noise: The name, of `zopeft.noise.NOISES`.
        family: The family of its numbers, for the engine.
        shapes: Block index to shape, for the engine.
        rank: Rank of a low-rank noise; 0 for others.
        shape_print: Fingerprint of the shapes that were given; "" for none.
    """

    noise: str
    family: str
    shapes: Mapping[int, Shape]
    rank: int
    shape_print: str


def directions_of(
    where: str,
    blocks: Blocks,
    noise: str,
    rank: int,
    shapes: Mapping[int, Shape] | None = None,
) -> Directions:
    """Takes a noise's name apart into a family of numbers and shapes of blocks.

    Low rank is a matter of matrices, not of elements: every whole 2-D block that no shape
    is given for becomes `LowRank`; vectors and slices of a prefix keep the family's noise.

    Args:
        where: Whose arguments these are, for messages.
        blocks: The blocks, [N].
        noise: A name of `zopeft.noise.NOISES`.
        rank: Rank of a low-rank noise, 1 to 64.
        shapes: Block index to shape; they go before the noise's own.

    Raises:
        InputError: The name is unknown, the rank is out of range, or a low-rank noise finds
            no matrix.
    """
    kind = NOISES[noise]
    given = dict(shapes or {})
    found: dict[int, Shape] = {}
    if kind.low_rank:
        own = LowRank(rank)
        found = {
            index: own
            for index, block in enumerate(blocks)
            if len(block.shape) == 2 and block.columns is None and blocks.space != "scales"
        }
        if not found:
            raise input_error(
                f"{where} noise", "finds no matrix among the blocks", noise, "choose another noise"
            )
    return Directions(
        noise, kind.family, {**found, **given}, rank if kind.low_rank else 0, fingerprint(given)
    )


def engine_of(
    blocks: Blocks, drawn_from: Directions, carrier: str, probes: str, groups: bool = False
) -> Engine:
    """Returns the engine of a run.

    Args:
        blocks: The blocks, [N].
        drawn_from: What its directions are made of.
        carrier: How weights are held, see `zopeft.engine.Engine`.
        probes: How probes run: "stacked", "separate" or "auto".
        groups: Whether groups of a batch see weights of their own (`zopeft.probing.groups`).
    """
    if carrier == "auto" and blocks.space == "full" and (probes == "stacked" or groups):
        # Flat weights would be written for each probe.
        carrier = "modules"
    return Engine(blocks, drawn_from.family, carrier, shapes=drawn_from.shapes)
