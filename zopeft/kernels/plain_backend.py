"""The kernels in plain PyTorch, on any device and in any floating dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from zopeft.kernels import plain
from zopeft.kernels import plain_tables as tables
from zopeft.kernels.form import Form, row_numbers
from zopeft.kernels.formula import Constants, Formula, Target, evaluate
from zopeft.kernels.plain_gradient import fold, squares
from zopeft.kernels.plain_layout import PlainLayouts, Statistics
from zopeft.kernels.plain_matrix import directions, draw
from zopeft.kernels.runs import START, Layout, Table
from zopeft.noise import Noise
from zopeft.noise.address import rounding_at, rounding_words
from zopeft.noise.dither import UPDATED, dither_run, dither_words
from zopeft.noise.philox import MASK

__all__ = ["PlainKernels", "Standing", "Statistics"]

Standing = Callable[[int, float, float, Tensor], None]
"""Writes ``weight + step * u`` from seed, step, scale and where it goes, see `standing`."""

CHUNK = 1 << 22
"""Elements that are worked on at a time (16 MB of fp32)."""


WIDENED = 1 << 18
"""Numbers of a 16-bit output that are widened at a time."""


class PlainKernels:
    """The interface of all backends, and its definition.

    Args:
        noise: The noise family.

    Attributes:
        rounding: How 16 bits are rounded to, one of `plain.ROUNDINGS`.
        pairs: Whether `shift_both` draws the noise of two probes once.
        stands: Whether `standing` returns anything.
        formulas: Whether `map` is the way to do a map that has a formula; it is not where
            PyTorch's own operations on tensors are the faster ones.
    """

    name = "plain"
    pairs = False
    stands = False
    formulas = True

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.rounding = plain.ROUNDINGS[0]
        self._layouts = PlainLayouts(noise)

    def dithers(self, out: Tensor) -> bool:
        """Whether a probe is rounded stochastically to the dtype of a tensor."""
        return self.rounding != "nearest" and out.dtype in plain.SIXTEEN_BIT

    def words(self, seed: int, address: int, start: int, count: int, out: Tensor) -> Tensor | None:
        """Returns what a run of a tensor is rounded by, int64 [count]; None for to nearest."""
        return dither_run(seed, address, start, count, out.device) if self.dithers(out) else None

    def updated_words(
        self, seed: int, address: int, start: int, count: int, weight: Tensor
    ) -> Tensor | None:
        """Returns what a run of an update is rounded by, int64 [count]; None where nothing is."""
        if weight.dtype not in plain.SIXTEEN_BIT:
            return None
        if self.rounding != "hashed":
            return rounding_words(seed, address, start, count, weight.device)
        return dither_run(seed ^ UPDATED, address, start, count, weight.device)

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
        return draw(self.noise, seed, stream, tensors, torch.device(device))

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

    def shift_both(
        self,
        seed: int,
        address: int,
        start: int,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
        out: Tensor,
        back: Tensor,
    ) -> None:
        """Does `shift` for a step and for minus the step.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the tensor.
            start: Index of the first element in the whole tensor.
            weight: [n], contiguous.
            step: Finite-difference step with its sign.
            scale: 0-dim fp32; None for one.
            out: [n], contiguous: ``weight + step * u``.
            back: [n], contiguous: ``weight - step * u``.
        """
        self.shift(seed, address, start, weight, step, scale, out)
        self.shift(seed, address, start, weight, -step, scale, back)

    def shift_rows_both(
        self,
        seed: int,
        address: int,
        weight: Tensor,
        rows: slice,
        step: float,
        scales: Tensor,
        out: Tensor,
        back: Tensor,
    ) -> None:
        """Does `shift_both` for rows of a matrix, each with a scale of its own.

        Args:
            seed: 64-bit key of the step.
            address: 32-bit address of the matrix.
            weight: The whole matrix as stored, [O, I].
            rows: A slice with start and stop.
            step: Finite-difference step with its sign.
            scales: fp32 [O], of all rows.
            out: [n, I], contiguous: ``weight + step * u``.
            back: [n, I], contiguous: ``weight - step * u``.
        """
        form = Form(scales, None)
        self.shift_matrix(seed, address, weight, rows, step, form, out)
        self.shift_matrix(seed, address, weight, rows, -step, form, back)

    def standing(
        self, address: int, weight: Tensor, out: Tensor | None, back: Tensor | None = None
    ) -> Standing | None:
        """Returns `shift` of a tensor that stays where it is, with all looked up once.

        Args:
            address: 32-bit address of the tensor.
            weight: The whole tensor, contiguous.
            out: Where it goes to each time, contiguous; None if that is another place each time.
            back: Where the weight with minus the step goes to; None for nowhere.

        Returns:
            Takes seed, step, scale and where it goes; None where that would save nothing.
        """
        return None

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
            words = self.updated_words(seed, address, at, piece.numel(), weight)
            plain.update_(piece, u, coefficient, decay, words)
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
            words = self.updated_words(seed, address, start + at, piece.numel(), out)
            assert words is not None
            out[at : at + CHUNK] = plain.stochastic_round(piece, words, out.dtype)

    def shift_table(
        self,
        table: Table,
        seed: int,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
        out: Tensor,
    ) -> None:
        """Does `shift` for some runs of one tensor, such as a shard's part of each row.

        Args:
            table: The runs, all of one address; see `zopeft.kernels.runs`.
            seed: 64-bit key of the step.
            weight: Flat and contiguous; the runs say where in it they lie.
            step: Finite-difference step with its sign.
            scale: 0-dim fp32; None for one.
            out: Flat and contiguous.
        """
        if len(table) == 1:
            _, _, count, start, address, _ = table[0].tolist()
            self.shift(seed, address, start, weight[:count], step, scale, out[:count])
            return
        dithered = self.dithers(out)
        for part in tables.pieces(table, CHUNK):
            tables.shift(self.noise, part, seed, weight, step, scale, out, dithered)

    def update_table(
        self,
        table: Table,
        seed: int,
        weight: Tensor,
        coefficient: float,
        decay: float,
        scale: Tensor | None,
    ) -> None:
        """Does `update` for some runs of one tensor, whose weights lie one behind the other.

        Args:
            table: The runs, all of one address.
            seed: 64-bit key of the step.
            weight: Flat and contiguous; changed in place.
            coefficient: Minus learning rate times projected gradient.
            decay: One minus learning rate times weight decay.
            scale: 0-dim fp32; None for one.
        """
        for part in tables.pieces(table, CHUNK):
            words = self.updated_table_words(part, seed, weight)
            tables.update(self.noise, part, seed, weight, (coefficient, decay), scale, words)

    def store_table(self, table: Table, seed: int, values: Tensor, out: Tensor) -> None:
        """Does `store` for some runs of one tensor: fp32 numbers, flat, in their order."""
        if len(table):
            words = self.updated_table_words(table, seed, out)
            out.copy_(tables.stored(values, out.dtype, words))

    def table_words(self, table: Table, seed: int, out: Tensor) -> Tensor | None:
        """Returns what some runs are rounded by, int64 [n]; None for to nearest."""
        return tables.words(table, seed, out.device) if self.dithers(out) else None

    def updated_table_words(self, table: Table, seed: int, weight: Tensor) -> Tensor | None:
        """Returns what an update of some runs is rounded by, int64 [n]; None where nothing is."""
        if weight.dtype not in plain.SIXTEEN_BIT:
            return None
        if self.rounding == "hashed":
            return tables.words(table, seed ^ UPDATED, weight.device)
        elements = tables.places(table, START, weight.device)
        return rounding_at(seed, tables.address_of(table), elements)

    def map(
        self,
        formula: Formula,
        targets: Sequence[Target],
        constants: Constants,
        noises: Sequence[int],
        seed: int,
    ) -> None:
        """Applies a formula to some blocks, in fp32; 16-bit weights are rounded as by `update`.

        Args:
            formula: The formula.
            targets: The blocks, [B].
            constants: Its constants' numbers, [1, c] or [B, c].
            noises: The 64-bit key of each of its noises.
            seed: 64-bit key of the step: it addresses the rounding.
        """
        for row, target in enumerate(targets):
            weight, own = target.weight.view(-1), constants[min(row, len(constants) - 1)].tolist()
            buffers = [buffer.view(-1) for buffer in target.buffers]
            for at, last, table in tables.stretches(target, CHUNK):
                piece = weight[at:last]
                device = piece.device
                draws = [
                    self._drawn(key, target.address, at, last, table, device) for key in noises
                ]
                parts = [buffer[at:last] for buffer in buffers]
                beside = [part.to(device, torch.float32) for part in parts]
                new, kept = evaluate(formula, piece.float(), beside, draws, own)
                if piece.dtype == torch.float32:
                    piece.copy_(new)
                elif table is None:
                    self.store(seed, target.address, at, new.contiguous(), piece)
                else:
                    self.store_table(table, seed, new, piece)
                for part, value in zip(parts, kept, strict=True):
                    if value is not None:
                        part.copy_(value)

    def _drawn(
        self,
        key: int,
        address: int,
        first: int,
        last: int,
        table: Table | None,
        device: torch.device,
    ) -> Tensor:
        """Returns the noise of a run of a tensor, or of the runs of a table."""
        if table is None:
            return self.noise.at_elements(key, address, first, last - first, device)
        return self.noise.at_places(key, address, tables.places(table, START, device))

    def flips(
        self, weight: Tensor, u: Tensor, rows: Tensor, columns: Tensor, step: float
    ) -> Iterator[Tensor]:
        """Yields ``weight + step * (u * r_k s_k^T)`` for each of some patterns of signs.

        Args:
            weight: fp32 [R, W].
            u: fp32 [R, W].
            rows: r, signs, fp32 [K, R].
            columns: s, signs, fp32 [K, W].
            step: Finite-difference step with its sign.

        Yields:
            fp32 [R, W]; the next one may lie in the same memory.
        """
        for r, s in zip(rows, columns, strict=True):
            yield plain.perturb(weight, u * (r.unsqueeze(1) * s), step)

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
        for part, place, u in directions(self.noise, seed, address, rows, weight, form):
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
        whole = slice(0, weight.shape[0])
        for part, _, u in directions(self.noise, seed, address, whole, weight, form):
            assert isinstance(part, slice)
            start = part.start * weight.shape[1]
            flat = weight[part].view(-1)
            words = self.updated_words(seed, address, start, flat.numel(), flat)
            plain.update_(flat, u.view(-1), coefficient, decay, words)
        return None

    def add_rows(self, out: Tensor, left: Tensor, right: Tensor, steps: Sequence[float]) -> None:
        """Adds a product of thin matrices, in their dtype, and rounds once to nearest.

        Where the output is narrower, ``step * left`` first, and then term by term: a matrix
        product's bits are each backend's own.

        Args:
            out: [n, O], contiguous; changed in place.
            left: [n, r].
            right: [r, O], of the output's dtype or wider.
            steps: What the product is multiplied by, [P]: one for each P-th part of the rows.
        """
        parts = len(out) // len(steps)
        if out.dtype == right.dtype:
            for own, thin, step in zip(out.split(parts), left.split(parts), steps, strict=True):
                own.addmm_(thin, right, alpha=step)
            return
        left = self.stretched(left, steps)
        rows = max(1, WIDENED // out.shape[1])
        for piece, part in zip(out.split(rows), left.split(rows), strict=True):
            total = piece.to(right.dtype)
            for k in range(right.shape[0]):
                total += part[:, k : k + 1] * right[k]
            piece.copy_(total)

    @staticmethod
    def stretched(left: Tensor, steps: Sequence[float]) -> Tensor:
        """Returns the rows [n, r], each P-th part of them multiplied by its own of P steps."""
        parts = left.split(len(left) // len(steps))
        # By numbers of Python, which are not rounded to the dtype before they are multiplied.
        return torch.cat([part * step for part, step in zip(parts, steps, strict=True)])

    def squares(self, values: Tensor) -> Tensor:
        """Returns ``sum_k x_k^2``, 0-dim float64; not finite where an element is not.

        Args:
            values: x, any shape and floating dtype.
        """
        return squares(values)

    def fold(
        self, seed: int, address: int, start: int, values: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Folds noise times values into a short vector.

        ``f_j = sum z_k x_k`` over the elements k of the whole tensor with ``k mod m = j``.

        Args:
            seed: 64-bit key of the noise.
            address: 32-bit address of the tensor.
            start: Index of the first element in the whole tensor.
            values: x, any shape and floating dtype: a run of the tensor's elements.
            length: m.

        Returns:
            f, fp32 [m], and the sum of squares as `squares` gives it.
        """
        folded = fold(self.noise, seed, address, start, values, length)
        return folded, self.squares(values)

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
        u = self._layouts.drawn(layout, seed, weight, scales)
        words = self._layouts.words(layout, seed, weight.device) if self.dithers(out) else None
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
        u = self._layouts.drawn(layout, seed, weight, scales)
        coefficient = self._layouts.uniform_or_spread(layout, coefficients, weight)
        decay = self._layouts.uniform_or_spread(layout, decays, weight)
        words = self.updated_words(seed, 0, 0, weight.numel(), weight)
        plain.update_(weight, u, coefficient, decay, words)
        self._layouts.forget()
        return None

    def statistics_layout(self, layout: Layout, weight: Tensor) -> Statistics:
        """Returns mean [n] and unbiased variance [n] of the layout's blocks."""
        return self._layouts.statistics(layout, weight)
