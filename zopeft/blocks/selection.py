"""Selecting blocks by role or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zopeft.blocks.block import Block
from zopeft.blocks.survey import Survey, held_parameters
from zopeft.errors import close_matches, input_error


def keep_trainable(model: nn.Module, select: str) -> int:
    """Freezes every parameter that `select` does not name, and unfreezes those it names.

    Args:
        model: A bare or wrapped model; changed in place.
        select: As for `discover`.

    Returns:
        The number of parameters left trainable.

    Raises:
        InputError: `select` names no floating-point parameter.
    """
    survey = Survey(model)
    held = [e for e in held_parameters(model) if e.parameter.is_floating_point()]
    found = {id(e): survey.blocks(e, 0) for e in held}
    chosen = chooser(select, [b for blocks in found.values() for b in blocks])
    kept = [e for e in held if any(chosen(b) for b in found[id(e)])]
    keep = {id(parameter) for entry in kept for parameter in entry.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in keep)
    return len(kept)


def chooser(select: str, blocks: Sequence[Block]) -> Choice:
    """Reads `select` as roles joined by commas if all are roles here, else as a pattern.

    Raises:
        InputError: It is neither, or it matches none of the blocks.
    """
    words = {word.strip() for word in select.split(",")}
    roles = {block.role for block in blocks} | {block.base_role for block in blocks}
    if words <= roles:
        return Choice(words, None)
    try:
        pattern = re.compile(select)
    except re.error as problem:
        raise input_error(
            "select", f"neither roles nor a regular expression ({problem})", select
        ) from None
    choice = Choice(set(), pattern)
    if not any(choice(block) for block in blocks):
        raise input_error("select", "matches no block", select, close_matches(select, roles))
    return choice


@dataclass(frozen=True)
class Choice:
    """Says whether a block is among the roles, or its name fits the pattern.

    Attributes:
        roles: Roles, own or of the base tensor; unused where there is a pattern.
        pattern: Searched in the blocks' names.
    """

    roles: set[str]
    pattern: re.Pattern[str] | None

    def __call__(self, block: Block) -> bool:
        """Returns whether the block is chosen."""
        if self.pattern is not None:
            return self.pattern.search(block.name) is not None
        return block.role in self.roles or block.base_role in self.roles
