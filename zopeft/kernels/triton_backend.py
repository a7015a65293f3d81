"""The kernels in Triton, for weights on a GPU; the same bits as the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from zopeft.kernels import triton_kernels as compiled
from zopeft.kernels.plain_backend import PlainKernels, Statistics
from zopeft.kernels.runs import BLOCK, LENGTH, PIECE, Layout
from zopeft.noise import Noise

FAMILIES = {
    "gaussian": compiled.GAUSSIAN,
    "binomial": compiled.BINOMIAL,
    "rademacher": compiled.RADEMACHER,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 4}
"""Of every launch: products and sums are rounded one by one, as PyTorch does."""


class _Rows:
    """A table on a device, and its runs in the order of their blocks.

    Args:
        layout: What lies where.
        device: The device.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        table = torch.from_numpy(layout.table)
        block = table[:, BLOCK]
        self.table = table.to(device)
        self.longest = int(table[:, LENGTH].max())
        self.order = block.argsort(stable=True).to(device)
        self.runs = block.bincount(minlength=layout.blocks[-1] + 1)[list(layout.blocks)].to(device)
        self.counts = self.table[:, LENGTH].double()


class TritonKernels(PlainKernels):
    """Triton kernels for contiguous fp32, bf16 and fp16 weights on a GPU.

    What lies on the CPU is left to the fastest backend there, other dtypes to the plain one.

    Args:
        noise: The noise family.
        tile: Elements a program works on at a time; a power of two, at least 128.
    """

    name = "triton"
    formulas = False

    def __init__(self, noise: Noise, tile: int = 1024) -> None:
        from zopeft.kernels.choice import kernels_for

        self.elsewhere = kernels_for("auto", noise, [torch.device("cpu")])
        super().__init__(noise)
        self.tile = tile
        self._rows: dict[tuple[Layout, torch.device], _Rows] = {}

    @property
    def rounding(self) -> str:
        """See `PlainMatrices`; that of the other backend, too."""
        return self.elsewhere.rounding

    @rounding.setter
    def rounding(self, rounding: str) -> None:
        self.elsewhere.rounding = rounding

    def _constants(self, scale: Tensor | None, whole: bool) -> dict[str, Any]:
        return {
            "WHOLE": whole,
            "SCALED": scale is not None,
            "FAMILY": FAMILIES[self.noise.family].value,
            "TILE": self.tile,
            **OPTIONS,
        }

    def _shifting(self, scale: Tensor | None, whole: bool, out: Tensor) -> dict[str, Any]:
        return {**self._constants(scale, whole), "DITHERED": self.dithers(out)}

    def _writing(self, scale: Tensor | None, whole: bool, factors: Tensor) -> dict[str, Any]:
        write = {"WRITE": factors.numel() > 0, "HASHED": self.rounding == "hashed"}
        return {**self._constants(scale, whole), **write}

    def _tiles(self, longest: int) -> int:
        return triton.cdiv(longest + self.noise.span - 1, self.tile)

    def _rows_of(self, layout: Layout, device: torch.device) -> _Rows:
        if (layout, device) not in self._rows:
            self._rows[layout, device] = _Rows(layout, device)
        return self._rows[layout, device]

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
        if not (_taken(weight) and _taken(out)):
            self.elsewhere.shift(seed, address, start, weight, step, scale, out)
            return
        count = weight.numel()
        grid = (triton.cdiv(count, PIECE), self._tiles(min(count, PIECE)))
        place = (weight, start, count, address, *_key(seed))
        source = weight.detach()
        _on(weight, compiled.shift[grid])(
            *place, step, _there(scale, weight), source, out, **self._shifting(scale, True, out)
        )

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
        if not _taken(weight):
            return self.elsewhere.shift_rows(seed, address, rows, weight, step, scale)
        width = weight.shape[1]
        out = weight.new_empty((len(rows), width))
        ones = torch.ones_like(rows)
        first = rows * width
        places = torch.arange(len(rows), device=rows.device) * width
        columns = (first, places, ones * width, first, ones * address, ones * 0)
        self._shift(
            torch.stack(columns, 1), width, seed, weight.detach(), step, _there(scale, weight), out
        )
        return out

    def _shift(
        self,
        table: Tensor,
        longest: int,
        seed: int,
        weight: Tensor,
        step: float,
        scales: Tensor | None,
        out: Tensor,
    ) -> None:
        grid = (len(table), self._tiles(longest))
        key = (0, 0, 0, *_key(seed))
        _on(weight, compiled.shift[grid])(
            table, *key, step, scales, weight, out, **self._shifting(scales, False, out)
        )

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
        if not (_taken(weight) and _taken(out)):
            self.elsewhere.shift_layout(layout, seed, weight, step, scales, out)
            return
        rows = self._rows_of(layout, weight.device)
        self._shift(rows.table, rows.longest, seed, weight, step, _there(scales, weight), out)

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
        """See `PlainKernels.update`; the moments hide behind the memory and are always there."""
        if not _taken(weight):
            return self.elsewhere.update(seed, address, weight, coefficient, decay, scale, measured)
        factors = torch.tensor([coefficient, decay], dtype=torch.float32).to(weight.device)
        return self._whole(weight, (address, *_key(seed)), factors, scale)

    def _whole(
        self, weight: Tensor, address: tuple[int, int, int], factors: Tensor, scale: Tensor | None
    ) -> Statistics:
        """Updates (with `factors`) or measures a tensor as a whole."""
        count = weight.numel()
        pieces = triton.cdiv(count, PIECE)
        moments = torch.empty(pieces, 2, dtype=torch.float64, device=weight.device)
        constants = self._writing(scale, True, factors)
        place = (weight, 0, count, *address, factors[:1], factors[1:], _there(scale, weight))
        _on(weight, compiled.update[(pieces,)])(*place, weight.detach(), moments, **constants)
        counts = torch.full((pieces,), PIECE, dtype=torch.float64, device=weight.device)
        counts[-1] = count - (pieces - 1) * PIECE
        mean = (counts * moments[:, 0]).sum() / count
        squares = (moments[:, 1] + counts * (moments[:, 0] - mean).square()).sum()
        return mean, squares / max(1, count - 1)

    def store(self, seed: int, address: int, start: int, values: Tensor, out: Tensor) -> None:
        """See `PlainKernels.store`."""
        if not (_taken(values) and _taken(out)):
            self.elsewhere.store(seed, address, start, values, out)
            return
        grid = (triton.cdiv(values.numel() + 3, self.tile),)
        place = (start, values.numel(), address, *_key(seed))
        constants = {"HASHED": self.rounding == "hashed", "TILE": self.tile, **OPTIONS}
        _on(values, compiled.store[grid])(*place, values, out, **constants)

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
        if not _taken(weight):
            return self.elsewhere.update_layout(layout, seed, weight, coefficients, decays, scales)
        factors = torch.stack((coefficients, decays)).to(weight.device, torch.float32)
        return self._rowwise(layout, seed, weight, factors, scales)

    def _rowwise(
        self, layout: Layout, seed: int, weight: Tensor, factors: Tensor, scales: Tensor | None
    ) -> Statistics:
        """Updates (with `factors`) or measures a flat buffer, block by block."""
        rows = self._rows_of(layout, weight.device)
        moments = torch.empty(len(rows.table), 2, dtype=torch.float64, device=weight.device)
        constants = self._writing(scales, False, factors)
        place = (rows.table, 0, 0, 0, *_key(seed), factors[:1], factors[1:])
        _on(weight, compiled.update[(len(rows.table),)])(
            *place, _there(scales, weight), weight, moments, **constants
        )

        def by_block(values: Tensor) -> Tensor:
            # Summed in the order of the table: atomic additions would come in any order.
            return torch.segment_reduce(values[rows.order], "sum", lengths=rows.runs)

        count = by_block(rows.counts)
        mean = by_block(rows.counts * moments[:, 0]) / count
        each = torch.empty_like(rows.counts)
        each[rows.order] = torch.repeat_interleave(mean, rows.runs, output_size=len(each))
        squares = by_block(moments[:, 1] + rows.counts * (moments[:, 0] - each).square())
        return mean, squares / (count - 1).clamp(min=1)

    def statistics(self, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics`."""
        if not _taken(weight):
            return self.elsewhere.statistics(weight)
        return self._whole(weight, (0, 0, 0), torch.empty(0, device=weight.device), None)

    def statistics_layout(self, layout: Layout, weight: Tensor) -> Statistics:
        """See `PlainKernels.statistics_layout`."""
        if not _taken(weight):
            return self.elsewhere.statistics_layout(layout, weight)
        return self._rowwise(layout, 0, weight, torch.empty(0, device=weight.device), None)


@lru_cache(maxsize=1)
def interprets() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU (``TRITON_INTERPRET=1``)."""
    return not isinstance(compiled.shift, triton.JITFunction)


def _taken(tensor: Tensor) -> bool:
    """Whether the kernels work on a tensor."""
    here = tensor.is_cuda or (interprets() and tensor.device.type == "cpu")
    return here and tensor.dtype in DTYPES and tensor.numel() > 0 and tensor.is_contiguous()


def _key(seed: int) -> tuple[int, int]:
    return seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF


def _there(scales: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if scales is None else scales.to(weight.device, torch.float32).contiguous()


def _on(tensor: Tensor, launch: Callable[..., Any]) -> Callable[..., Any]:
    """Launches on the tensor's GPU, which need not be the current one."""
    if not tensor.is_cuda:
        return launch

    def launched(*arguments: Any, **constants: Any) -> None:
        with torch.cuda.device(tensor.device):
            launch(*arguments, **constants)

    return launched
