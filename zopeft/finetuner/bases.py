"""Bases: the directions that a fine-tuner has learned for a matrix, of both sides or of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.finetuner.config import FineTunerConfig, Group

WORST = 0.05
"""How far from orthonormal stored columns may be: rounding to bf16 leaves about 0.01."""


Pair = tuple[Tensor | None, Tensor | None]
"""Directions of a matrix's two sides, of which one may be missing."""
INPUTS_FIRST = ("conv1d", "embedding")
"""Kinds of blocks whose first dimension is that of their inputs."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions of one matrix, as they are stored.

    Attributes:
        left: Directions of the first dimension, bf16 [O, r]; None where none were learned.
        right: Directions of the second one, bf16 [I, r]; None where none were learned.
    """

    left: Tensor | None
    right: Tensor | None

    @classmethod
    def of(cls, left: Tensor | None, right: Tensor | None) -> Basis:
        """Rounds orthonormal columns [O, r] and [I, r] to what is stored."""
        pair = (left, right)
        return cls(*(None if s is None else s.detach().cpu().bfloat16().contiguous() for s in pair))

    @property
    def sides(self) -> dict[str, Tensor]:
        """The sides that there are, by name, the left one first."""
        pair = {"left": self.left, "right": self.right}
        return {name: side for name, side in pair.items() if side is not None}


def input_side(kind: str) -> str:
    """Returns the side of a matrix that its inputs meet, from its block's kind."""
    return "left" if kind in INPUTS_FIRST else "right"


def sides_of(bases: Iterable[tuple[str, Basis]]) -> str:
    """Says which sides some bases hold, as `FineTunerConfig.sides`.

    Args:
        bases: Kind of a block, and its basis.

    Raises:
        InputError: They are neither of both sides, all of them, nor all of the inputs alone.
    """
    found = {_held(kind, basis) for kind, basis in bases}
    if len(found) > 1 or found & {"outputs", "none"}:
        do = "give both, or those of the inputs for all"
        raise input_error("bases", "hold sides that do not go together", ", ".join(found), do)
    return "inputs" if found == {"inputs"} else "both"


def _held(kind: str, basis: Basis) -> str:
    if len(basis.sides) != 1:
        return "both" if basis.sides else "none"
    return "inputs" if input_side(kind) in basis.sides else "outputs"


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
    ``r = min(rank, O, I)``; the one of the inputs alone where the configuration says so.
    """
    wanted = {}
    for index, group in enumerate(config.groups):
        if group.shape is not None and config.capacity == "subspace":
            rank = min(config.rank, *group.shape)
            for side, size in zip(("left", "right"), group.shape, strict=True):
                if config.sides == "both" or side == input_side(group.kind):
                    wanted[f"{side}.{index}"] = (size, rank)
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

    def drawn(like: Tensor | None) -> Tensor | None:
        return (
            None
            if like is None
            else torch.linalg.qr(torch.randn(like.shape, generator=generator))[0]
        )

    return {
        index: Basis.of(drawn(basis.left), drawn(basis.right)) for index, basis in bases.items()
    }
