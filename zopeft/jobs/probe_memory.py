"""What a zeroth-order step holds beside a forward pass, counted from shapes.

Compiled kernels (numba, triton) make noise without a tensor of it. A step on full weights then
holds, in the dtype of the weights:

- one buffer that linear layers use one after another, from the first of them to the end of
  the step: as large as the largest perturbed at once, which is the whole of a layer with a
  bias, and a chunk of rows of a wide one without;
- whatever another module owns, while it runs. The rows of an embedding that the batch names
  are no more than its output, and gone long before a forward pass is at its peak;
- along directions of low rank neither of both for a linear layer's matrix, but the factors of
  all matrices, in fp32.

Adapters and small fp32 models are held flat: a master, and no more. Where the kernels are not
compiled, the numbers of a chunk of noise come on top.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from zopeft.engine.layers import CHUNK

NOISE_BYTES = 32
"""Bytes that each element of noise takes while PyTorch makes it, at most."""


def noise_bytes(count: int) -> int:
    """Returns what the noise of so many elements takes while it is made.

    Args:
        count: Elements that are perturbed at once; more than a chunk are not.
    """
    compiled = any(importlib.util.find_spec(name) for name in ("numba", "triton"))
    return 0 if compiled else NOISE_BYTES * min(count, CHUNK)


def factor_bytes(trained: Iterable[Tensor], rank: int) -> int:
    """Returns the bytes of the factors [O, r] and [r, I] of all matrices.

    Args:
        trained: What is trained.
        rank: r; 0 for directions that have no factors.
    """
    return sum(4 * rank * sum(p.shape) for p in trained if p.ndim == 2)


def scratch_bytes(model: nn.Module, low_rank: bool) -> int:
    """Returns the bytes of perturbed weights that are held at once, of weights not held flat.

    Args:
        model: The model; what requires gradients is perturbed.
        low_rank: Whether matrices are perturbed along products of factors.
    """
    reused = passing = 0
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        if type(module) is nn.Linear or type(module).__name__ == "Conv1D":
            reused = max(reused, _of_linear(module, own, low_rank))
        else:
            by_rows = isinstance(module, nn.Embedding) and len(own) == 1
            passing = max(passing, 0 if by_rows else sum(p.nbytes for p in own))
    return reused + passing


def _of_linear(module: Any, own: Sequence[Tensor], low_rank: bool) -> int:
    """Returns what is perturbed at once of a layer that returns new memory."""
    if low_rank:
        # The product runs beside the matrix.
        return sum(p.nbytes for p in own if p.ndim != 2)
    weight = module.weight
    wide = type(module) is nn.Linear and weight.numel() > CHUNK and len(own) == 1
    if not wide:
        return sum(p.nbytes for p in own)
    rows = max(1, CHUNK // weight.shape[1])
    return int(rows * weight.shape[1] * weight.element_size())
