"""Which shape each block's direction takes: a learned subspace, rows by frequency, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from zopeft.blocks import Block
from zopeft.engine import LowRank, Rows, Shape, Subspace
from zopeft.engine.frequency import is_token_table, token_rows
from zopeft.finetuner.bases import INPUTS_FIRST, Basis, orthonormal
from zopeft.finetuner.config import FineTunerConfig, Group
from zopeft.finetuner.matching import Match

OTHER_SIZE = "of another size"
NO_COUNTS = "for want of token counts"
_INPUTS, _OUTPUTS = "_A", "_B"


@dataclass
class Fitted:
    """The shapes of a model's blocks.

    Attributes:
        shapes: Block to its shape; blocks that are not in it are perturbed in all directions
            alike.
        unfit: Why blocks that a shape was learned for have none, and how many.
    """

    shapes: dict[int, Shape] = field(default_factory=dict)
    unfit: Counter[str] = field(default_factory=Counter)

    @property
    def report(self) -> str:
        """One line: how many blocks have which shape; "" where there is nothing to say."""
        kinds = Counter(type(shape) for shape in self.shapes.values())
        parts = []
        if kinds[Subspace]:
            parts.append(f"{kinds[Subspace]} blocks in a learned subspace")
        if kinds[Rows]:
            parts.append(f"{kinds[Rows]} with rows by token frequency")
        if kinds[LowRank]:
            parts.append(f"{kinds[LowRank]} of low rank")
        parts += [f"{count} in all directions {why}" for why, count in self.unfit.items()]
        return ", ".join(parts)


def fitted_shapes(
    config: FineTunerConfig,
    bases: Mapping[int, Basis],
    match: Match,
    token_counts: Tensor | None = None,
    adapters: bool = False,
) -> Fitted:
    """Returns the shapes of the matched blocks.

    A basis serves a block of the shape it was learned on. Of a basis learned on a whole
    matrix, LoRA's B may take the directions of the outputs and its A those of the inputs.

    Args:
        config: The fine-tuner's configuration.
        bases: Group to its basis.
        match: Groups of the blocks.
        token_counts: How often each token occurs, [V]; None if unknown.
        adapters: Whether LoRA takes its share of a basis of its base: off, since scales
            alone did better where both were run (one small model, one seed).
    """
    found = Fitted()
    for index, (block, group) in enumerate(zip(match.blocks, match.group.tolist(), strict=True)):
        if config.rows == "frequency" and is_token_table(block):
            if token_counts is None:
                found.unfit[NO_COUNTS] += 1
            else:
                found.shapes[index] = token_rows(
                    block, token_counts, config.power, config.rows_order
                )
        elif group in bases and (adapters or block.role == config.groups[group].role):
            left, right = _sides(config.groups[group], bases[group], block)
            if left is None and right is None:
                found.unfit[OTHER_SIZE] += 1
                continue
            # On the CPU: the engine knows where each block's directions are needed.
            found.shapes[index] = Subspace(
                None if left is None else orthonormal(left),
                None if right is None else orthonormal(right),
                config.mix,
            )
    return found


def _sides(group: Group, basis: Basis, block: Block) -> tuple[Tensor | None, Tensor | None]:
    """Returns the left and right directions of a block; None for those it has not."""
    if len(block.shape) != 2 or block.columns is not None:
        return None, None
    rows, columns = block.shape
    if block.role == group.role:
        return (basis.left, basis.right) if group.shape == (rows, columns) else (None, None)
    # Stored [O, I], but [I, O] by GPT-2's layers and [V, D] by an embedding.
    outputs, inputs = basis.left, basis.right
    if group.kind in INPUTS_FIRST:
        outputs, inputs = inputs, outputs
    if block.role.endswith(_OUTPUTS) and outputs is not None and rows == outputs.shape[0]:
        return outputs, None
    if block.role.endswith(_INPUTS) and inputs is not None and columns == inputs.shape[0]:
        return None, inputs
    return None, None
