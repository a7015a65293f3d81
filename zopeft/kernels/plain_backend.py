"""The kernels in plain PyTorch, on any device and in any floating dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zopeft.kernels import plain
from zopeft.kernels.plain_matrix import PlainMatrices, Statistics
from zopeft.kernels.runs import BLOCK, LENGTH, OUT, Layout
from zopeft.noise import Noise
from zopeft.noise.address import rounding_words
from zopeft.noise.dither import dither_words

__all__ = ["PlainKernels", "Statistics"]

CHUNK = 1 << 22
"""Elements that are worked on at a time (16 MB of fp32)."""


@dataclass
class _Spread:
    """A layout's addresses and blocks, written out for each counter and each run."""

    counters: Tensor
    addresses: Tensor
    blocks: Tensor
    lengths: Tensor


class PlainKernels(PlainMatrices):
    """The interface of all backends, and its definition.

    Args:
        noise: The noise family.
    """

    name = "plain"

    def __init__(self, noise: Noise) -> None:
        super().__init__(noise)
        self._spreads: dict[Layout, _Spread] = {}
        self._kept: tuple[Layout, int, Tensor | None, Tensor] | None = None

    def shift(
        self,
        seed: int,
        address: int,
        start: int,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
        out: Tensor,
    ) -> None:
        """Writes ``weight + step * (scale * z)`` to `out`, rounded once as `rounding` says.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            start: Index of the first element in the whole tensor.
            weight: A flat run of the stored weights, [n].
            step: Finite-difference step with its sign.
            scale: 0-dim fp32; None for one.
            out: [n], contiguous, of the weight's dtype.
        """
        for at in range(0, weight.numel(), CHUNK):
            piece = weight[at : at + CHUNK]
            u = self._scaled(seed, address, start + at, piece, scale)
            words = self.words(seed, address, start + at, piece.numel(), out)
            out[at : at + CHUNK] = plain.perturb(piece, u, step, words, out.dtype)

    def shift_rows(
        self,
        seed: int,
        address: int,
        rows: Tensor,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
    ) -> Tensor:
        """Returns some rows of a matrix as `shift` would make them, in a new tensor.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the matrix.
            rows: int64 [n], row numbers.
            weight: The matrix, [V, D].
            step: Finite-difference step with its sign.
            scale: 0-dim fp32; None for one.

        Returns:
            [n, D] of the weight's dtype.
        """
        u = self.noise.at_rows(seed, address, rows, weight.shape[1])
        if scale is not None:
            u = u.mul_(scale.to(u.device))
        words = self.row_words(seed, address, rows, weight, weight)
        return plain.perturb(weight[rows], u, step, words)

    def update(
        self,
        seed: int,
        address: int,
        weight: Tensor,
        coefficient: float,
        decay: float,
        scale: Tensor | None,
        measured: bool = True,
    ) -> Statistics | None:
        """Writes ``decay * weight + coefficient * (scale * z)``, stochastically rounded.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            weight: The whole tensor, flat and contiguous; changed in place.
            coefficient: Minus learning rate times projected gradient.
            decay: One minus learning rate times weight decay.
            scale: 0-dim fp32; None for one.
            measured: Whether the new weights' statistics are of use.

        Returns:
            The new weights' statistics where they are, and the pass gives them; else None.
        """
        for at in range(0, weight.numel(), CHUNK):
            piece = weight[at : at + CHUNK]
            u = self._scaled(seed, address, at, piece, scale)
            plain.update_(piece, u, coefficient, decay, seed, address, at)
        return None

    def store(self, seed: int, address: int, start: int, values: Tensor, out: Tensor) -> None:
        """Writes fp32 numbers to 16-bit storage with the rounding of `update`.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            start: Index of the first element in the whole tensor.
            values: fp32 [n], contiguous; may be used up.
            out: [n], contiguous, bf16 or fp16.
        """
        for at in range(0, values.numel(), CHUNK):
            piece = values[at : at + CHUNK]
            words = rounding_words(seed, address, start + at, piece.numel(), piece.device)
            out[at : at + CHUNK] = plain.stochastic_round(piece, words, out.dtype)

    def _scaled(
        self, seed: int, address: int, start: int, piece: Tensor, scale: Tensor | None
    ) -> Tensor:
        u = self.noise.at_elements(seed, address, start, piece.numel(), piece.device)
        return u if scale is None else u.mul_(scale.to(u.device))

    def statistics(self, weight: Tensor) -> Statistics:
        """Returns mean and unbiased variance of all elements, each 0-dim float64."""
        flat = weight.reshape(-1)
        total = torch.zeros((), dtype=torch.float64, device=flat.device)
        for chunk in flat.split(CHUNK):
            total += chunk.double().sum()
        mean = total / flat.numel()
        squares = torch.zeros_like(total)
        for chunk in flat.split(CHUNK):
            squares += (chunk.double() - mean).square_().sum()
        return mean, squares / max(1, flat.numel() - 1)

    def shift_layout(
        self,
        layout: Layout,
        seed: int,
        weight: Tensor,
        step: float,
        scales: Tensor | None,
        out: Tensor,
    ) -> None:
        """Does `shift` for a whole flat buffer of many tensors.

        Args:
            layout: What lies where in the buffer.
            seed: 64-bit key of the step.
            weight: fp32 [size].
            step: Finite-difference step with its sign.
            scales: fp32 [N], a block's at its index; None for ones.
            out: [size], of any floating dtype.
        """
        u, words = self._drawn(layout, seed, weight, scales), None
        if self.dithers(out):
            spread = self._spread(layout, weight.device)
            inside = torch.arange(self.noise.span, device=weight.device)
            elements = spread.counters.unsqueeze(1) * self.noise.span + inside
            words = dither_words(seed, spread.addresses.unsqueeze(1), elements).view(-1)
        out.copy_(plain.perturb(weight, u, step, words, out.dtype))

    def update_layout(
        self,
        layout: Layout,
        seed: int,
        weight: Tensor,
        coefficients: Tensor,
        decays: Tensor,
        scales: Tensor | None,
    ) -> Statistics | None:
        """Does `update` for a whole flat fp32 buffer.

        Args:
            layout: What lies where in the buffer.
            seed: 64-bit key of the step.
            weight: fp32 [size], changed in place.
            coefficients: float64 [N].
            decays: float64 [N].
            scales: fp32 [N]; None for ones.

        Returns:
            Statistics [n] of the layout's blocks where they come for nothing, else None.
        """
        u = self._drawn(layout, seed, weight, scales)
        coefficient = self._uniform_or_spread(layout, coefficients, weight)
        decay = self._uniform_or_spread(layout, decays, weight)
        plain.update_(weight, u, coefficient, decay, seed, 0)
        self._kept = None
        return None

    def statistics_layout(self, layout: Layout, weight: Tensor) -> Statistics:
        """Returns mean [n] and unbiased variance [n] of the layout's blocks."""
        spread = self._spread(layout, weight.device)
        values = weight.double()
        place = torch.full((layout.blocks[-1] + 2,), len(layout.blocks), device=weight.device)
        place[torch.tensor(layout.blocks, device=weight.device)] = torch.arange(
            len(layout.blocks), device=weight.device
        )
        block = place[spread.blocks]
        zeros = torch.zeros(len(layout.blocks) + 1, dtype=torch.float64, device=weight.device)
        count = zeros.index_add(0, block, spread.lengths.double())
        sums = torch.segment_reduce(values, "sum", lengths=spread.lengths)
        mean = zeros.index_add(0, block, sums) / count.clamp(min=1)
        each = torch.repeat_interleave(mean[block], spread.lengths, output_size=len(weight))
        squares = torch.segment_reduce((values - each).square_(), "sum", lengths=spread.lengths)
        variance = zeros.index_add(0, block, squares) / (count - 1).clamp(min=1)
        return mean[:-1], variance[:-1]

    def _drawn(self, layout: Layout, seed: int, weight: Tensor, scales: Tensor | None) -> Tensor:
        """The u of the whole buffer; kept, since a step asks for it three times."""
        kept = self._kept
        if kept is None or kept[0] is not layout or kept[1] != seed or kept[2] is not scales:
            spread = self._spread(layout, weight.device)
            u = self.noise.at_counters(seed, spread.counters, spread.addresses)
            one = torch.ones(layout.blocks[-1] + 1, device=weight.device)
            u = u.mul_(self._each(layout, one if scales is None else scales, weight, 0.0))
            kept = self._kept = (layout, seed, scales, u)
        return kept[3]

    def _uniform_or_spread(self, layout: Layout, values: Tensor, weight: Tensor) -> Tensor | float:
        own = values[list(layout.blocks)]
        first = float(own[0])
        return first if bool((own == first).all()) else self._each(layout, values, weight, 1.0)

    def _each(self, layout: Layout, values: Tensor, weight: Tensor, padding: float) -> Tensor:
        """fp32 [size]: each block's value at all of its elements."""
        spread = self._spread(layout, weight.device)
        table = torch.full((layout.blocks[-1] + 2,), padding, device=weight.device)
        table[:-1] = values[: layout.blocks[-1] + 1]
        return torch.repeat_interleave(
            table[spread.blocks], spread.lengths, output_size=layout.size
        )

    def _spread(self, layout: Layout, device: torch.device) -> _Spread:
        if layout not in self._spreads:
            span = self.noise.span
            counts = [padded // span for _, padded in layout.tensors]
            addresses = torch.tensor([a for a, _ in layout.tensors], device=device)
            blocks, lengths, end = [], [], 0
            for row in layout.table[:, [OUT, LENGTH, BLOCK]].tolist():
                blocks += [-1, row[2]]
                lengths += [row[0] - end, row[1]]
                end = row[0] + row[1]
            self._spreads[layout] = _Spread(
                torch.cat([torch.arange(c, device=device) for c in counts]),
                torch.repeat_interleave(addresses, torch.tensor(counts, device=device)),
                torch.tensor([*blocks, -1], device=device),
                torch.tensor([*lengths, layout.size - end], device=device),
            )
        return self._spreads[layout]
