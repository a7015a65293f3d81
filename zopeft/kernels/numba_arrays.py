"""Tensors, scales and moments as the compiled kernels take and give them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zopeft.kernels import numba_kernels as compiled
from zopeft.kernels import runs
from zopeft.kernels.form import Form, row_numbers
from zopeft.kernels.formula import Formula, Target
from zopeft.kernels.plain_layout import Statistics
from zopeft.kernels.runs import BLOCK, Layout, Table

FEW = 1 << 14
"""Rows of the largest matrix whose table is kept: 0.8 MB."""
KINDS = {
    torch.float32: compiled.FLOAT32,
    torch.bfloat16: compiled.BFLOAT16,
    torch.float16: compiled.FLOAT16,
}


def taken(tensor: Tensor) -> bool:
    """Whether the kernels work on a tensor."""
    kernel = tensor.device.type == "cpu" and tensor.dtype in KINDS
    return kernel and tensor.numel() > 0 and tensor.is_contiguous()


def stored(tensor: Tensor) -> tuple[npt.NDArray[np.uint8], int]:
    """Returns a contiguous tensor's own memory as bytes, [bytes], and what they hold."""
    return tensor.detach().view(-1).view(torch.uint8).numpy(), KINDS[tensor.dtype]


def kinds_of(target: Target) -> list[int | None]:
    """Returns what a target's weights and buffers hold; None for what the kernels do not know."""
    return [KINDS.get(tensor.dtype) for tensor in (target.weight, *target.buffers)]


def mapped(target: Target, kinds: list[int | None], formula: Formula) -> bool:
    """Whether the kernels apply a formula to a target, whose tensors hold what others' do."""
    written = [buffer for buffer, new in zip(target.buffers, formula.buffers, strict=True) if new]
    exact = all(buffer.dtype == torch.float32 for buffer in written)
    return exact and kinds_of(target) == kinds and all(map(taken, (target.weight, *target.buffers)))


def numbers(values: Tensor) -> npt.NDArray[np.float32]:
    """Returns a tensor's values in fp32, in its shape."""
    found: npt.NDArray[np.float32] = values.detach().to("cpu", torch.float32).contiguous().numpy()
    return found


def one_scale(scale: Tensor | None) -> npt.NDArray[np.float32]:
    """Returns the scale of a single block, [1]; one where there is none."""
    return np.ones(1, np.float32) if scale is None else numbers(scale).reshape(1)


def all_scales(scales: Tensor | None, layout: Layout) -> npt.NDArray[np.float32]:
    """Returns the scales of all blocks, [N]; ones where there are none."""
    return np.ones(layout.blocks[-1] + 1, np.float32) if scales is None else numbers(scales)


def row_table(rows: slice | Tensor, weight: Tensor, address: int) -> Table:
    """Returns a run a row; its row number stands in the place of a block's index.

    It may be kept, and is not to be changed.
    """
    if isinstance(rows, slice) and rows.stop - rows.start <= FEW:
        return _few_rows(rows.start, rows.stop, weight.shape[1], address)
    chosen = row_numbers(rows, weight.device).numpy()
    table = runs.of_rows(chosen, weight.shape[1], address)
    table[:, BLOCK] = chosen
    return table


@lru_cache(maxsize=1024)
def _few_rows(start: int, stop: int, width: int, address: int) -> Table:
    """Does `row_table` for a matrix whose table is kept."""
    chosen = np.arange(start, stop)
    table = runs.of_rows(chosen, width, address)
    table[:, BLOCK] = chosen
    return table


def form_arrays(form: Form, weight: Tensor) -> tuple[npt.NDArray[np.float32], ...]:
    """Returns scale [O, 1], left and right of a form; no columns or rows where there is none."""
    scale = weight.new_empty(weight.shape[0], 0) if form.scale is None else form.scale.unsqueeze(1)
    empty = (weight.new_empty(weight.shape[0], 0), weight.new_empty(0, weight.shape[1]))
    left, right = empty if form.factors is None else form.factors
    return numbers(scale), numbers(left), numbers(right)


def combined(moments: npt.NDArray[np.float64], table: Table, blocks: tuple[int, ...]) -> Statistics:
    """Adds up the pieces' moments in the order of the table, block by block: each [n].

    Args:
        moments: Count, mean and sum of squared deviations of each run, [pieces, 3].
        table: The runs.
        blocks: The blocks' indices, [n].
    """
    count, mean, squares = moments.T
    block = table[:, BLOCK]
    total = np.bincount(block, count)
    means = np.bincount(block, count * mean) / np.maximum(total, 1)
    apart = np.bincount(block, squares + count * (mean - means[block]) ** 2)
    own = list(blocks)
    variance = apart / np.maximum(total - 1, 1)
    return torch.from_numpy(means[own]), torch.from_numpy(variance[own])


def only(moments: npt.NDArray[np.float64], table: Table) -> Statistics:
    """Returns the statistics of a table's only block, each 0-dim."""
    mean, variance = combined(moments, table, (0,))
    return mean[0], variance[0]
