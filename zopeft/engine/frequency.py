"""Rows by token frequency: tokens that training sees often move more than those it does not."""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.engine.shapes import Rows, Shape
from zopeft.errors import input_error

POWER = 0.5
"""The power of the frequency that a row's standard deviation is: from experiment."""


def is_token_table(block: Block) -> bool:
    """Whether a block is a whole table of token embeddings, one row a token."""
    return block.kind == "embedding" and block.role == "embed" and block.columns is None


def token_rows(
    block: Block, counts: Tensor, power: float = POWER, order: int | None = None
) -> Rows:
    """Returns a table's shape: the row of token v is perturbed by ``(count_v + 1)^power``.

    The engine normalises the weights, so that the block's mean power stays.

    Args:
        block: A table of token embeddings [V, D].
        counts: How often each token occurs, [V]; tokens past its end count 0.
        power: At least 0; 0 perturbs all rows alike.
        order: Seed of a random order of the weights over the rows, a control; None for none.

    Raises:
        InputError: Tokens were counted that the table has no row for.
    """
    rows = block.shape[0]
    if len(counts) > rows and bool(counts[rows:].any()):
        raise input_error("token counts", f"{block.name} has {rows} rows only", len(counts))
    whole = torch.zeros(rows, dtype=torch.float64)
    whole[: len(counts)] = counts[:rows].to(whole)
    weights = (whole + 1.0).pow(power).float()
    if order is not None:
        weights = weights[torch.randperm(rows, generator=torch.Generator().manual_seed(order))]
    return Rows(weights)


def frequency_shapes(blocks: Blocks, counts: Tensor, power: float = POWER) -> dict[int, Shape]:
    """Returns the shapes of all token tables among the blocks, as `Engine` takes them.

    Args:
        blocks: The blocks, [N].
        counts: As for `token_rows`.
        power: As for `token_rows`.
    """
    return {
        index: token_rows(block, counts, power)
        for index, block in enumerate(blocks)
        if is_token_table(block)
    }
