"""The kernels for gradients that are used up as they are made, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.noise import Noise

CHUNK = 1 << 20
"""Elements that are worked on at a time: no copy of a gradient is ever made whole."""


class PlainGradients:
    """What a gradient is asked for: the sum of its squares, and its sums with noise.

    Args:
        noise: The noise family.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def squares(self, values: Tensor) -> Tensor:
        """Returns ``sum_k x_k^2``, 0-dim float64; not finite where an element is not.

        Args:
            values: x, any shape and floating dtype.
        """
        total = torch.zeros((), dtype=torch.float64, device=values.device)
        for piece in values.reshape(-1).split(CHUNK):
            total += piece.double().square_().sum()
        return total

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
        flat = values.reshape(-1)
        # A row of the table below begins where an element's index is a multiple of m.
        before = start % length
        total = torch.zeros(length, dtype=torch.float32, device=flat.device)
        step = max(1, CHUNK // length) * length
        for first in range(-before, flat.numel(), step):
            at, end = max(0, first), min(first + step, flat.numel())
            piece = flat[at:end]
            product = self.noise.at_elements(
                seed, address, start + at, piece.numel(), flat.device
            ).mul_(piece)
            if first < 0:
                head = min(length - before, product.numel())
                total[before : before + head] += product[:head]
                product = product[head:]
            whole = product.numel() // length * length
            total += product[:whole].view(-1, length).sum(0)
            total[: product.numel() - whole] += product[whole:]
        return total, self.squares(flat)
