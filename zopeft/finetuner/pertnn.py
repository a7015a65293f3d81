"""PertNN: the small network that reads a block's features and gives its scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PertNN(nn.Module):
    """One two-layer network a group, all of them evaluated at once.

    ``raw_i = | w2_g . tanh(w1_g x_i + b1_g) + b2_g |``  with ``g = group_i``.

    The weights of all groups are stacked, so that one gather and one batched product serve
    every block, with no loop and no synchronisation. The start is that of ``nn.Linear``:
    uniform in ``+-1/sqrt(fan_in)``, weights and biases alike.

    Args:
        groups: Number of groups G.
        features: Number of features F a block.
        hidden: Hidden units H of each network.
        generator: CPU generator of the start; None draws from torch's global one.

    References:
        Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", 2025,
        equation 2. The tanh, the absolute value and H = 64 are those of the authors' code;
        the text names neither and gives 64 and 32 in different places.
    """

    def __init__(
        self,
        groups: int,
        features: int = 5,
        hidden: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()

        def start(*shape: int, fan_in: int) -> nn.Parameter:
            bound = 1.0 / math.sqrt(fan_in)
            return nn.Parameter((torch.rand(shape, generator=generator) * 2.0 - 1.0) * bound)

        self.w1 = start(groups, hidden, features, fan_in=features)
        self.b1 = start(groups, hidden, fan_in=features)
        self.w2 = start(groups, hidden, fan_in=hidden)
        self.b2 = start(groups, fan_in=hidden)

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """Returns the raw scales.

        Args:
            x: Features of the blocks [N, F].
            group: Each block's group, in [0, G), long [N].

        Returns:
            Raw scales, at least 0, [N].
        """
        return self.inner(x, group).abs()

    def inner(self, x: Tensor, group: Tensor) -> Tensor:
        """Returns the networks' outputs before the absolute value, [N]; see `forward`."""
        w1, b1, w2, b2 = (p.index_select(0, group) for p in (self.w1, self.b1, self.w2, self.b2))
        h = torch.tanh(torch.einsum("nhf,nf->nh", w1, x) + b1)
        return (w2 * h).sum(-1) + b2

    def per_group(self) -> list[Tensor]:
        """Returns the tensors that hold a row for each group."""
        return [self.w1, self.b1, self.w2, self.b2]

    @torch.no_grad()
    def hold(self, hit: Tensor, value: Tensor) -> None:
        """Makes some networks constant, in place.

        Args:
            hit: Which ones, bool [G].
            value: What they give from now on, [G]; the others' is not read.
        """
        self.w2[hit] = 0.0
        self.b2[hit] = value[hit].to(self.b2)
