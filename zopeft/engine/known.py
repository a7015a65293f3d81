"""Statistics of a block that the update pass has measured, and whether they still hold."""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.kernels.plain_backend import Statistics


class Known:
    """Statistics of a block, and marks of the state of its weights that they are of.

    Writers that PyTorch counts are seen by the weight's version; those that write through
    ``.data`` by a sample of elements.
    """

    def __init__(self, statistics: Statistics, weight: Tensor) -> None:
        self.statistics = statistics
        self._version, self._place = weight._version, weight.data_ptr()
        self._sample = _sample(weight).clone()

    def fits(self, weight: Tensor) -> bool:
        """Whether nobody has written the weight since, or put another in its place."""
        same = (self._version, self._place) == (weight._version, weight.data_ptr())
        return same and torch.equal(self._sample, _sample(weight))


def _sample(weight: Tensor, count: int = 64) -> Tensor:
    flat = weight.detach().view(-1)
    return flat[:: max(1, flat.numel() // count)]
