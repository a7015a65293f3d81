"""Bases: the left and right directions that a fine-tuner has learned for a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.finetuner.config import FineTunerConfig, Group

WORST = 0.05
"""How far from orthonormal stored columns may be: rounding to bf16 leaves about 0.01."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions of one matrix, as they are stored.

    Attributes:
        left: Directions of the first dimension, bf16 [O, r].
        right: Directions of the second one, bf16 [I, r].
    """

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Basis:
        """Rounds orthonormal columns [O, r] and [I, r] to what is stored."""
        return cls(*(side.detach().cpu().bfloat16().contiguous() for side in (left, right)))


def orthonormal(columns: Tensor) -> Tensor:
    """Returns stored columns made orthonormal again, fp32 [n, r].

    ``columns L^-T`` with ``columns^T columns = L L^T``, in float64 on the CPU: the columns
    are nearly orthonormal, so that this is exact and does not depend on the machine.

    Args:
        columns: bf16 [n, r], see `is_orthonormal`.
    """
    whole = columns.cpu().double()
    factor = torch.linalg.cholesky(whole.t() @ whole)
    found: Tensor = torch.linalg.solve_triangular(factor, whole.t(), upper=False).t()
    return found.float().contiguous()


def is_orthonormal(columns: Tensor) -> bool:
    """Says whether columns [n, r] are orthonormal up to the rounding of bf16."""
    whole = columns.double()
    gram = whole.t() @ whole
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    # A comparison with something that is not a number is false.
    return bool(((gram - eye).abs().amax() if gram.numel() else gram.sum()) < WORST)


def stored_shapes(config: FineTunerConfig) -> dict[str, tuple[int, int]]:
    """Returns the tensors that a fine-tuner's file holds for its bases, by name.

    ``left.<g>`` [O, r] and ``right.<g>`` [I, r] for each group g that has a shape, with
    ``r = min(rank, O, I)``.
    """
    wanted = {}
    for index, group in enumerate(config.groups):
        if group.shape is not None and config.capacity == "subspace":
            rank = min(config.rank, *group.shape)
            wanted[f"left.{index}"] = (group.shape[0], rank)
            wanted[f"right.{index}"] = (group.shape[1], rank)
    return wanted


def permuted(
    bases: Mapping[int, Basis], groups: Sequence[Group], generator: torch.Generator
) -> dict[int, Basis]:
    """Reassigns bases among the groups of one shape, along a random cycle of each shape.

    A shape that only one group has keeps its basis.

    Args:
        bases: Group to its basis.
        groups: The group table.
        generator: CPU generator of the cycles.
    """
    alike: dict[tuple[int, int] | None, list[int]] = {}
    for index in bases:
        alike.setdefault(groups[index].shape, []).append(index)
    found = {}
    for members in alike.values():
        order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
        for place, taken in zip(order, [order[-1], *order[:-1]], strict=True):
            found[place] = bases[taken]
    return dict(sorted(found.items()))


def random_like(bases: Mapping[int, Basis], generator: torch.Generator) -> dict[int, Basis]:
    """Returns bases of the same sizes whose directions are random.

    Args:
        bases: Group to its basis.
        generator: CPU generator of the directions.
    """

    def drawn(like: Tensor) -> Tensor:
        return torch.linalg.qr(torch.randn(like.shape, generator=generator))[0]

    return {
        index: Basis.of(drawn(basis.left), drawn(basis.right)) for index, basis in bases.items()
    }
