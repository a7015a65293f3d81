"""The kernels compiled by numba, on as many threads as PyTorch uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zopeft.kernels import numba_kernels as compiled
from zopeft.kernels import runs
from zopeft.kernels.form import Form, row_numbers
from zopeft.kernels.plain_backend import PlainKernels, Statistics
from zopeft.kernels.runs import BLOCK, Layout, Table
from zopeft.kernels.threads import share_out

KINDS = {
    torch.float32: compiled.FLOAT32,
    torch.bfloat16: compiled.BFLOAT16,
    torch.float16: compiled.FLOAT16,
}
FAMILIES = {
    "gaussian": compiled.GAUSSIAN,
    "binomial": compiled.BINOMIAL,
    "rademacher": compiled.RADEMACHER,
}


class NumbaKernels(PlainKernels):
    """Compiled kernels for fp32, bf16 and fp16 on the CPU; the same bits as plain."""

    name = "numba"

    def _run(self, table: Table, kernel: Any, moments: Any, *arguments: Any) -> None:
        def call(part: slice) -> None:
            own = () if moments is None else (moments[part],)
            kernel(table[part], *arguments, *own)

        share_out(table, call)

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
        if not (_compiled(weight) and _compiled(out)):
            super().shift(seed, address, start, weight, step, scale, out)
            return
        table = runs.whole(address, start, weight.numel())
        self._shift(table, seed, weight, step, _one(scale), out)

    def _shift(
        self, table: Table, seed: int, weight: Tensor, step: float, scales: Any, out: Tensor
    ) -> None:
        source, kind = _bytes(weight), KINDS[weight.dtype]
        arguments = (*self._key(seed), scales, np.float32(step), source, kind)
        self._run(table, compiled.shift, None, *arguments, _bytes(out), KINDS[out.dtype])

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
        if not _compiled(weight):
            return super().shift_rows(seed, address, rows, weight, step, scale)
        out = weight.new_empty((len(rows), weight.shape[1]))
        table = runs.of_rows(rows.numpy(), weight.shape[1], address)
        self._shift(table, seed, weight, step, _one(scale), out)
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
        if not _compiled(weight):
            return super().update(seed, address, weight, coefficient, decay, scale, measured)
        table = runs.whole(address, 0, weight.numel())
        one = _one(None)
        rates = one * np.float32(coefficient), one * np.float32(decay)
        moments = self._update(table, seed, weight, *rates, _one(scale), measured)
        return _first(moments, table) if measured else None

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
        arguments = (*self._key(seed), scales, coefficients, decays)
        self._run(table, compiled.update, moments, *arguments, _bytes(weight), KINDS[weight.dtype])
        return moments

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
        arguments = (*self._key(seed), _one(None), np.float32(1), *nothing)
        self._run(runs.cut(rows), compiled.shift, None, *arguments, _bytes(out), compiled.FLOAT32)
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
        if not (_compiled(weight) and _compiled(out)):
            super().shift_matrix(seed, address, weight, rows, step, form, out)
            return
        table = _of_rows(rows, weight, address)
        arguments = (*self._key(seed), *_arrays(form, weight), np.float32(step))
        places = (_bytes(weight), KINDS[weight.dtype], _bytes(out), KINDS[out.dtype])
        self._run(table, compiled.shift_matrix, None, *arguments, *places)

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
        if not _compiled(weight):
            return super().update_matrix(seed, address, weight, coefficient, decay, form, measured)
        table = _of_rows(slice(0, weight.shape[0]), weight, address)
        moments = np.empty((len(table), 3 if measured else 0))
        arguments = (*self._key(seed), *_arrays(form, weight))
        rates = (np.float32(coefficient), np.float32(decay))
        place = (_bytes(weight), KINDS[weight.dtype])
        self._run(table, compiled.update_matrix, moments, *arguments, *rates, *place)
        if not measured:
            return None
        table[:, BLOCK] = 0
        return _first(moments, table)

    def statistics(self, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics`."""
        if not _compiled(weight):
            return super().statistics(weight)
        table = runs.whole(0, 0, weight.numel())
        return _first(self._measure(table, weight), table)

    def _measure(self, table: Table, weight: Tensor) -> npt.NDArray[np.float64]:
        moments = np.empty((len(table), 3))
        self._run(table, compiled.measure, moments, _bytes(weight), KINDS[weight.dtype])
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
        if not (_compiled(weight) and _compiled(out)):
            super().shift_layout(layout, seed, weight, step, scales, out)
            return
        self._shift(layout.table, seed, weight, step, _all(scales, layout), out)

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
        if not _compiled(weight):
            return super().update_layout(layout, seed, weight, coefficients, decays, scales)
        rates, decay = (_numbers(values) for values in (coefficients, decays))
        moments = self._update(layout.table, seed, weight, rates, decay, _all(scales, layout))
        return _combined(moments, layout.table, layout.blocks)

    def statistics_layout(self, layout: Layout, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics_layout`."""
        if not _compiled(weight):
            return super().statistics_layout(layout, weight)
        return _combined(self._measure(layout.table, weight), layout.table, layout.blocks)


def _compiled(tensor: Tensor) -> bool:
    kernel = tensor.device.type == "cpu" and tensor.dtype in KINDS
    return kernel and tensor.numel() > 0 and tensor.is_contiguous()


def _bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    return tensor.detach().view(-1).view(torch.uint8).numpy()


def _numbers(values: Tensor) -> npt.NDArray[np.float32]:
    numbers: npt.NDArray[np.float32] = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return numbers


def _one(scale: Tensor | None) -> npt.NDArray[np.float32]:
    return np.ones(1, np.float32) if scale is None else _numbers(scale).reshape(1)


def _all(scales: Tensor | None, layout: Layout) -> npt.NDArray[np.float32]:
    return np.ones(layout.blocks[-1] + 1, np.float32) if scales is None else _numbers(scales)


def _of_rows(rows: slice | Tensor, weight: Tensor, address: int) -> Table:
    """A run a row; its row number stands in the place of a block's index."""
    numbers = row_numbers(rows, weight.device).numpy()
    table = runs.of_rows(numbers, weight.shape[1], address)
    table[:, BLOCK] = numbers
    return table


def _arrays(form: Form, weight: Tensor) -> tuple[npt.NDArray[np.float32], ...]:
    """The scale, left and right of a form, with no columns or no rows where there is none."""
    scale = weight.new_empty(weight.shape[0], 0) if form.scale is None else form.scale.unsqueeze(1)
    empty = (weight.new_empty(weight.shape[0], 0), weight.new_empty(0, weight.shape[1]))
    left, right = empty if form.factors is None else form.factors
    return _numbers(scale), _numbers(left), _numbers(right)


def _combined(
    moments: npt.NDArray[np.float64], table: Table, blocks: tuple[int, ...]
) -> Statistics:
    """Adds up the pieces' moments in the order of the table, block by block."""
    count, mean, squares = moments.T
    block = table[:, BLOCK]
    total = np.bincount(block, count)
    means = np.bincount(block, count * mean) / np.maximum(total, 1)
    apart = np.bincount(block, squares + count * (mean - means[block]) ** 2)
    own = list(blocks)
    variance = apart / np.maximum(total - 1, 1)
    return torch.from_numpy(means[own]), torch.from_numpy(variance[own])


def _first(moments: npt.NDArray[np.float64], table: Table) -> Statistics:
    mean, variance = _combined(moments, table, (0,))
    return mean[0], variance[0]
