"""The kernels for shaped directions of matrices, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zopeft.kernels import plain
from zopeft.kernels.form import Form, row_numbers
from zopeft.kernels.plain_gradient import PlainGradients
from zopeft.noise import Noise
from zopeft.noise.dither import dither_run, dither_words
from zopeft.noise.philox import MASK

CHUNK = 1 << 20
"""Elements that are worked on at a time: they pass through a few times, in the cache."""

Statistics = tuple[Tensor, Tensor]
"""Mean and unbiased variance, float64."""


class PlainMatrices(PlainGradients):
    """Probe and update of a matrix whose direction is a `Form`.

    Args:
        noise: The noise family.

    Attributes:
        rounding: How probes are rounded to 16 bits, one of `plain.ROUNDINGS`.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise)
        self.rounding = plain.ROUNDINGS[0]

    def dithers(self, out: Tensor) -> bool:
        """Whether a probe is rounded stochastically to the dtype of a tensor."""
        return self.rounding == "stochastic" and out.dtype in plain.SIXTEEN_BIT

    def words(self, seed: int, address: int, start: int, count: int, out: Tensor) -> Tensor | None:
        """Returns what a run of a tensor is rounded by, int64 [count]; None for to nearest."""
        return dither_run(seed, address, start, count, out.device) if self.dithers(out) else None

    def row_words(
        self, seed: int, address: int, rows: slice | Tensor, weight: Tensor, out: Tensor
    ) -> Tensor | None:
        """Returns what some rows of a matrix are rounded by, int64 [n, I]; None for to nearest."""
        if not self.dithers(out):
            return None
        chosen, width = row_numbers(rows, weight.device), weight.shape[1]
        columns = torch.arange(width, device=weight.device)
        return dither_words(seed, address & MASK, chosen.unsqueeze(1) * width + columns)

    def draw(
        self,
        seed: int,
        stream: int,
        tensors: Sequence[tuple[int, int]],
        device: torch.device | str,
    ) -> list[Tensor]:
        """Returns the noise of some whole tensors, made at once.

        Args:
            seed: 64-bit key of the step.
            stream: Which of the addresses' streams is read.
            tensors: 32-bit address and number of elements of each.
            device: Where the noise is made.

        Returns:
            fp32 [count] of each tensor.
        """
        if not tensors:
            return []
        span = self.noise.span
        counts = [-(-count // span) for _, count in tensors]
        counters = torch.cat([torch.arange(count, device=device) for count in counts])
        addresses = torch.repeat_interleave(
            torch.tensor([address for address, _ in tensors], device=device),
            torch.tensor(counts, device=device),
        )
        noise = self.noise.at_counters(seed, counters, addresses, stream)
        parts = noise.split([count * span for count in counts])
        return [part[:count] for part, (_, count) in zip(parts, tensors, strict=True)]

    def shift_matrix(
        self,
        seed: int,
        address: int,
        weight: Tensor,
        rows: slice | Tensor,
        step: float,
        form: Form,
        out: Tensor,
    ) -> None:
        """Writes ``weight + step * u`` for some rows to `out`, rounded once as `rounding` says.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the matrix.
            weight: The whole matrix as stored, [O, I].
            rows: A slice with start and stop, or row numbers, int64 [n].
            step: Finite-difference step with its sign.
            form: What u is made of.
            out: [n, I], contiguous, of any floating dtype.
        """
        for part, place in _parts(rows, weight.shape[1]):
            u = self._direction(seed, address, part, weight, form)
            words = self.row_words(seed, address, part, weight, out)
            out[place] = plain.perturb(weight[part], u, step, words, out.dtype)

    def update_matrix(
        self,
        seed: int,
        address: int,
        weight: Tensor,
        coefficient: float,
        decay: float,
        form: Form,
        measured: bool = True,
    ) -> Statistics | None:
        """Writes ``decay * weight + coefficient * u``, stochastically rounded.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the matrix.
            weight: The whole matrix, [O, I], contiguous; changed in place.
            coefficient: Minus learning rate times projected gradient.
            decay: One minus learning rate times weight decay.
            form: What u is made of.
            measured: Whether the new weights' statistics are of use.

        Returns:
            The new weights' statistics where they are, and the pass gives them; else None.
        """
        width = weight.shape[1]
        for part, _ in _parts(slice(0, weight.shape[0]), width):
            assert isinstance(part, slice)
            u = self._direction(seed, address, part, weight, form).view(-1)
            flat = weight[part].view(-1)
            plain.update_(flat, u, coefficient, decay, seed, address, part.start * width)
        return None

    def _direction(
        self, seed: int, address: int, rows: slice | Tensor, weight: Tensor, form: Form
    ) -> Tensor:
        noise = None
        width = weight.shape[1]
        if form.scale is not None and isinstance(rows, slice):
            start, count = rows.start * width, (rows.stop - rows.start) * width
            noise = self.noise.at_elements(seed, address, start, count, weight.device)
        elif form.scale is not None and isinstance(rows, Tensor):
            noise = self.noise.at_rows(seed, address, rows, width)
        return form.direction(None if noise is None else noise.view(-1, width), rows)


def _parts(rows: slice | Tensor, width: int) -> list[tuple[slice | Tensor, slice]]:
    """Cuts rows into chunks: each one's index, and its place among all of them."""
    most = max(1, CHUNK // width)
    if isinstance(rows, Tensor):
        places = [slice(at, at + most) for at in range(0, len(rows), most)]
        return [(rows[place], place) for place in places]
    return [
        (
            slice(first, min(first + most, rows.stop)),
            slice(first - rows.start, first - rows.start + most),
        )
        for first in range(rows.start, rows.stop, most)
    ]
