"""Shapes: where the direction of a matrix lives.

Without a shape, a block's direction is isotropic, ``u = scale * z``. A shape says where u
may point; it holds for a whole run, and every shape keeps the mean of ``|u|^2`` at the
block's number of elements, so that eps and the learning rate mean the same.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block
from zopeft.errors import input_error
from zopeft.kernels.form import Factors

MAX_RANK = 64


class Shape(ABC):
    """What all shapes can tell the engine about a matrix [O, I]."""

    @property
    def noisy(self) -> bool:
        """Whether isotropic noise is part of u."""
        return False

    @abstractmethod
    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """Returns how many numbers the left and the right factor are drawn from."""

    def factors(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Factors | None:
        """Makes the factors of u from drawn numbers; None where u has no product part.

        Args:
            left: fp32, numbers of the left stream, flat.
            right: fp32, numbers of the right stream, flat.
            rows: O.
            columns: I.
        """
        return None

    def kept_sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """Returns how many numbers are drawn for what is kept for some steps: left and right."""
        return 0, 0

    def keep(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Any:
        """Makes what is kept for some steps from drawn numbers (see `factors`)."""
        return None

    def join(self, left: Tensor, right: Tensor, rows: int, columns: int, kept: Any) -> Any:
        """Makes the factors of u (see `factors`) from drawn numbers and what is kept."""
        return self.factors(left, right, rows, columns)

    def row_scales(self, rows: int, device: torch.device) -> Tensor | None:
        """Returns what each row's noise is multiplied by, fp32 [O]; None without noise."""
        return None

    @abstractmethod
    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """Returns all that the shape depends on, as text and tensors."""

    def to(self, device: torch.device) -> Shape:
        """Returns the shape with its tensors on a device."""
        return self

    def check(self, block: Block) -> None:
        """Refuses a block that the shape does not fit.

        Raises:
            InputError: The block is no matrix of its own, or of another size.
        """
        if len(block.shape) != 2 or block.columns is not None:
            raise input_error(
                block.name,
                "only a whole matrix can have a shape",
                list(block.shape),
                "leave it out",
            )


@dataclass(frozen=True)
class LowRank(Shape):
    """``u = A B^T / sqrt(r)``, A [O, r] and B [I, r] of independent numbers, each step anew.

    Args:
        rank: r, between 1 and 64.

    Raises:
        InputError: The rank is out of range.

    References:
        Chen et al., "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
        Structures", 2024 (LOZO), equation 3; there B is kept for some steps.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int):
            raise input_error("rank", "must be a whole number", str(self.rank))
        if not 1 <= self.rank <= MAX_RANK:
            raise input_error("rank", f"must be between 1 and {MAX_RANK}", self.rank)

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: O r and I r."""
        return rows * self.rank, columns * self.rank

    def factors(self, left: Tensor, right: Tensor, rows: int, columns: int) -> Factors:
        """See `Shape.factors`: A / sqrt(r) and B^T."""
        scaled = left.view(rows, self.rank) * (1.0 / math.sqrt(self.rank))
        return scaled, right.view(columns, self.rank).t().contiguous()

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return f"low_rank {self.rank}", ()


@dataclass(frozen=True, eq=False)
class Rows(Shape):
    """``u_o = w_o / sqrt(mean w^2) z_o`` for every row o.

    Args:
        weights: w, [O], finite and above 0: how strongly each row is perturbed.

    Raises:
        InputError: A weight is out of range.
    """

    weights: Tensor

    def __post_init__(self) -> None:
        weights = self.weights
        if weights.ndim != 1 or not bool(((weights > 0) & weights.isfinite()).all()):
            raise input_error(
                "rows weights", "must be a vector of finite numbers above 0", list(weights.shape)
            )

    @property
    def noisy(self) -> bool:
        """See `Shape.noisy`."""
        return True

    def sizes(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Shape.sizes`: none."""
        return 0, 0

    def row_scales(self, rows: int, device: torch.device) -> Tensor:
        """See `Shape.row_scales`: the weights, normalised in fp64."""
        weights = self.weights.double()
        return (weights / weights.square().mean().sqrt()).float().to(device)

    def words(self) -> tuple[str, tuple[Tensor, ...]]:
        """See `Shape.words`."""
        return "rows", (self.weights,)

    def check(self, block: Block) -> None:
        """See `Shape.check`."""
        super().check(block)
        if len(self.weights) != block.shape[0]:
            raise input_error(block.name, f"needs {block.shape[0]} row weights", len(self.weights))


def fingerprint(shapes: Mapping[int, Shape]) -> str:
    """Returns 16 hex digits that differ for different shapes; "" where there are none.

    Args:
        shapes: Block index to shape.
    """
    if not shapes:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    for index in sorted(shapes):
        text, tensors = shapes[index].words()
        digest.update(f"{index} {text}".encode())
        for tensor in tensors:
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{plain.dtype} {list(plain.shape)}".encode())
            digest.update(plain.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
