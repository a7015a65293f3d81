"""The kernels compiled by numba, on as many threads as PyTorch uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zopeft.kernels import numba_arrays as arrays
from zopeft.kernels import numba_kernels as compiled
from zopeft.kernels import runs
from zopeft.kernels.form import Form
from zopeft.kernels.formula import Constants, Formula, Target
from zopeft.kernels.numba_formula import address_of
from zopeft.kernels.plain_backend import PlainKernels, Standing, Statistics
from zopeft.kernels.runs import BLOCK, Layout, Table
from zopeft.kernels.threads import share_out

FAMILIES = {
    "gaussian": compiled.GAUSSIAN,
    "binomial": compiled.BINOMIAL,
    "rademacher": compiled.RADEMACHER,
}


class NumbaKernels(PlainKernels):
    """Compiled kernels for fp32, bf16 and fp16 on the CPU; the same bits as plain."""

    name = "numba"
    pairs = True
    stands = True

    @property
    def _hashed(self) -> int:
        return int(self.rounding == "hashed")

    def _key(self, seed: int) -> tuple[np.uint64, int]:
        return np.uint64(seed), FAMILIES[self.noise.family]

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
        """See `PlainKernels.shift`."""
        if not (arrays.taken(weight) and arrays.taken(out)):
            super().shift(seed, address, start, weight, step, scale, out)
            return
        table = runs.whole(address, start, weight.numel(), runs.FINE)
        self._shift(table, seed, weight, step, arrays.one_scale(scale), out)

    def _shift(
        self, table: Table, seed: int, weight: Tensor, step: float, scales: Any, out: Tensor
    ) -> None:
        places = (*arrays.stored(weight), *arrays.stored(out), int(self.dithers(out)))
        arguments = (*self._key(seed), scales, np.float32(step), *places)
        share_out(compiled.shift, table, *arguments)

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
        """See `PlainKernels.shift_both`."""
        if not all(map(arrays.taken, (weight, out, back))):
            super().shift_both(seed, address, start, weight, step, scale, out, back)
            return
        table = runs.whole(address, start, weight.numel(), runs.FINE)
        places = (*arrays.stored(weight), arrays.stored(out)[0], *arrays.stored(back))
        given = (*self._key(seed), arrays.one_scale(scale), np.float32(step), *places)
        share_out(compiled.shift_both, table, *given, int(self.dithers(out)))

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
        """See `PlainKernels.shift_rows_both`."""
        if not all(map(arrays.taken, (weight, out, back))):
            super().shift_rows_both(seed, address, weight, rows, step, scales, out, back)
            return
        table = arrays.row_table(rows, weight, address)
        places = (*arrays.stored(weight), arrays.stored(out)[0], *arrays.stored(back))
        given = (*self._key(seed), arrays.numbers(scales), np.float32(step), *places)
        share_out(compiled.shift_both, table, *given, int(self.dithers(out)))

    def standing(
        self, address: int, weight: Tensor, out: Tensor | None, back: Tensor | None = None
    ) -> Standing | None:
        """See `PlainKernels.standing`."""
        if not all(arrays.taken(each) for each in (weight, out, back) if each is not None):
            return None
        table, scales = runs.whole(address, 0, weight.numel(), runs.FINE), np.ones(1, np.float32)
        source, family, kernel = arrays.stored(weight), FAMILIES[self.noise.family], compiled.shift
        target: Any = None if out is None else arrays.stored(out)
        if target is not None and back is not None:
            kernel, target = compiled.shift_both, (target[0], *arrays.stored(back))

        def shift(seed: int, step: float, scale: float, out: Tensor) -> None:
            scales[0] = scale
            places = (*source, *(target or arrays.stored(out)), int(self.dithers(out)))
            arguments = (np.uint64(seed), family, scales, np.float32(step), *places)
            share_out(kernel, table, *arguments)

        return shift

    def shift_rows(
        self,
        seed: int,
        address: int,
        rows: Tensor,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
    ) -> Tensor:
        """See `PlainKernels.shift_rows`."""
        if not arrays.taken(weight):
            return super().shift_rows(seed, address, rows, weight, step, scale)
        out = weight.new_empty((len(rows), weight.shape[1]))
        table = runs.of_rows(rows.numpy(), weight.shape[1], address)
        self._shift(table, seed, weight, step, arrays.one_scale(scale), out)
        return out

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
        """See `PlainKernels.update`."""
        if not arrays.taken(weight):
            return super().update(seed, address, weight, coefficient, decay, scale, measured)
        table = runs.whole(address, 0, weight.numel())
        one = arrays.one_scale(None)
        rates = one * np.float32(coefficient), one * np.float32(decay)
        moments = self._update(table, seed, weight, *rates, arrays.one_scale(scale), measured)
        return arrays.only(moments, table) if measured else None

    def _update(
        self,
        table: Table,
        seed: int,
        weight: Tensor,
        coefficients: Any,
        decays: Any,
        scales: Any,
        measured: bool = True,
    ) -> npt.NDArray[np.float64]:
        moments = np.empty((len(table), 3 if measured else 0))
        arguments = (*self._key(seed), scales, coefficients, decays, *arrays.stored(weight))
        share_out(compiled.update, table, *arguments, self._hashed, moments)
        return moments

    def store(self, seed: int, address: int, start: int, values: Tensor, out: Tensor) -> None:
        """See `PlainKernels.store`."""
        if not (arrays.taken(values) and arrays.taken(out)):
            super().store(seed, address, start, values, out)
            return
        table = runs.whole(address, start, values.numel(), runs.FINE)
        source, (target, kind) = arrays.stored(values)[0], arrays.stored(out)
        arguments = (np.uint64(seed), source, target, kind, self._hashed)
        share_out(compiled.store, table, *arguments)

    def shift_table(
        self,
        table: Table,
        seed: int,
        weight: Tensor,
        step: float,
        scale: Tensor | None,
        out: Tensor,
    ) -> None:
        """See `PlainKernels.shift_table`."""
        if not (arrays.taken(weight) and arrays.taken(out)):
            super().shift_table(table, seed, weight, step, scale, out)
            return
        self._shift(table, seed, weight, step, arrays.one_scale(scale), out)

    def update_table(
        self,
        table: Table,
        seed: int,
        weight: Tensor,
        coefficient: float,
        decay: float,
        scale: Tensor | None,
    ) -> None:
        """See `PlainKernels.update_table`."""
        if not arrays.taken(weight):
            super().update_table(table, seed, weight, coefficient, decay, scale)
            return
        one = arrays.one_scale(None)
        rates = one * np.float32(coefficient), one * np.float32(decay)
        self._update(table, seed, weight, *rates, arrays.one_scale(scale), False)

    def map(
        self,
        formula: Formula,
        targets: Sequence[Target],
        constants: Constants,
        noises: Sequence[int],
        seed: int,
    ) -> None:
        """See `PlainKernels.map`."""
        kinds = arrays.kinds_of(targets[0])
        if not all(arrays.mapped(target, kinds, formula) for target in targets):
            super().map(formula, targets, constants, noises, seed)
            return
        places = [[t.weight.data_ptr(), *(b.data_ptr() for b in t.buffers)] for t in targets]
        table = _of_targets(targets)
        arguments = (
            address_of(formula),
            np.ascontiguousarray(constants, dtype=np.float32),
            np.array(noises, dtype=np.uint64),
            FAMILIES[self.noise.family],
            np.array(places, dtype=np.int64),
            np.array(kinds, dtype=np.int64),
        )
        rounding = np.uint64(seed), self._hashed
        share_out(compiled.mapped, table, *arguments, *rounding)

    def flips(
        self, weight: Tensor, u: Tensor, rows: Tensor, columns: Tensor, step: float
    ) -> Iterator[Tensor]:
        """See `PlainKernels.flips`."""
        given = (weight, u, rows, columns)
        if not all(arrays.taken(each) and each.dtype == torch.float32 for each in given):
            yield from super().flips(weight, u, rows, columns, step)
            return
        out, length = torch.empty_like(weight), np.float32(step)
        source, numbers, left, right, target = (each.numpy() for each in (*given, out))
        table = runs.of_all_rows(*weight.shape)
        for r, s in zip(left, right, strict=True):
            share_out(compiled.flip, table, source, numbers, r, s, length, target)
            yield out

    def squares(self, values: Tensor) -> Tensor:
        """See `PlainGradients.squares`."""
        if not arrays.taken(values):
            return super().squares(values)
        return self._fold(runs.whole(0, 0, values.numel()), 0, values, 0)[1]

    def fold(
        self, seed: int, address: int, start: int, values: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """See `PlainGradients.fold`; the same sums, added in another order."""
        if not arrays.taken(values):
            return super().fold(seed, address, start, values, length)
        return self._fold(runs.whole(address, start, values.numel()), seed, values, length)

    def _fold(self, table: Table, seed: int, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        squares, folded = np.empty(len(table)), np.zeros((len(table), length), np.float32)
        arguments = (*self._key(seed), *arrays.stored(values))

        share_out(compiled.fold, table, *arguments, squares, folded)
        return torch.from_numpy(folded).sum(0), torch.from_numpy(squares).sum()

    def draw(
        self,
        seed: int,
        stream: int,
        tensors: Sequence[tuple[int, int]],
        device: torch.device | str,
    ) -> list[Tensor]:
        """See `PlainMatrices.draw`."""
        if torch.device(device).type != "cpu" or not tensors:
            return super().draw(seed, stream, tensors, device)
        counts = [count for _, count in tensors]
        ends = np.cumsum(counts)
        rows = [
            (0, int(end) - count, count, 0, stream << 32 | address, 0)
            for (address, count), end in zip(tensors, ends, strict=True)
        ]
        out = torch.empty(int(ends[-1]))
        nothing = (np.empty(0, np.uint8), compiled.NOTHING)
        places = (*nothing, *arrays.stored(out), 0)
        arguments = (*self._key(seed), arrays.one_scale(None), np.float32(1), *places)
        share_out(compiled.shift, runs.cut(rows, runs.FINE), *arguments)
        return list(out.split(counts))

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
        """See `PlainMatrices.shift_matrix`."""
        if not (arrays.taken(weight) and arrays.taken(out)):
            super().shift_matrix(seed, address, weight, rows, step, form, out)
            return
        table = arrays.row_table(rows, weight, address)
        arguments = (*self._key(seed), *arrays.form_arrays(form, weight), np.float32(step))
        places = (*arrays.stored(weight), *arrays.stored(out), int(self.dithers(out)))
        share_out(compiled.shift_matrix, table, *arguments, *places)

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
        """See `PlainMatrices.update_matrix`."""
        if not arrays.taken(weight):
            return super().update_matrix(seed, address, weight, coefficient, decay, form, measured)
        table = arrays.row_table(slice(0, weight.shape[0]), weight, address)
        moments = np.empty((len(table), 3 if measured else 0))
        arguments = (*self._key(seed), *arrays.form_arrays(form, weight))
        rates = (np.float32(coefficient), np.float32(decay))
        place = (*arrays.stored(weight), self._hashed)
        share_out(compiled.update_matrix, table, *arguments, *rates, *place, moments)
        if not measured:
            return None
        alike = table.copy()
        alike[:, BLOCK] = 0
        return arrays.only(moments, alike)

    def add_rows(self, out: Tensor, left: Tensor, right: Tensor, steps: Sequence[float]) -> None:
        """See `PlainMatrices.add_rows`; PyTorch's own product where nothing is to be widened."""
        if out.dtype == right.dtype or not all(map(arrays.taken, (out, left, right))):
            super().add_rows(out, left, right, steps)
            return
        table = runs.of_all_rows(*out.shape)
        thin = self.stretched(left, steps).numpy(), right.numpy()
        share_out(compiled.add_rows, table, *thin, *arrays.stored(out))

    def statistics(self, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics`."""
        if not arrays.taken(weight):
            return super().statistics(weight)
        table = runs.whole(0, 0, weight.numel())
        return arrays.only(self._measure(table, weight), table)

    def _measure(self, table: Table, weight: Tensor) -> npt.NDArray[np.float64]:
        moments = np.empty((len(table), 3))
        share_out(compiled.measure, table, *arrays.stored(weight), moments)
        return moments

    def shift_layout(
        self,
        layout: Layout,
        seed: int,
        weight: Tensor,
        step: float,
        scales: Tensor | None,
        out: Tensor,
    ) -> None:
        """See `PlainKernels.shift_layout`."""
        if not (arrays.taken(weight) and arrays.taken(out)):
            super().shift_layout(layout, seed, weight, step, scales, out)
            return
        self._shift(layout.table, seed, weight, step, arrays.all_scales(scales, layout), out)

    def update_layout(
        self,
        layout: Layout,
        seed: int,
        weight: Tensor,
        coefficients: Tensor,
        decays: Tensor,
        scales: Tensor | None,
    ) -> Statistics | None:
        """See `PlainKernels.update_layout`."""
        if not arrays.taken(weight):
            return super().update_layout(layout, seed, weight, coefficients, decays, scales)
        rates, decay = (arrays.numbers(values) for values in (coefficients, decays))
        moments = self._update(
            layout.table, seed, weight, rates, decay, arrays.all_scales(scales, layout)
        )
        return arrays.combined(moments, layout.table, layout.blocks)

    def statistics_layout(self, layout: Layout, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics_layout`."""
        if not arrays.taken(weight):
            return super().statistics_layout(layout, weight)
        return arrays.combined(self._measure(layout.table, weight), layout.table, layout.blocks)


def _of_targets(targets: Sequence[Target]) -> Table:
    """Returns the runs of some targets, each with its number in the place of a block's index."""
    if all(target.table is None for target in targets):
        return runs.of_blocks(tuple((t.address, t.weight.numel()) for t in targets))
    tables = []
    for number, target in enumerate(targets):
        count = target.weight.numel()
        own = runs.whole(target.address, 0, count) if target.table is None else target.table
        own = own.copy()
        own[:, BLOCK] = number
        tables.append(own)
    return np.concatenate(tables)
