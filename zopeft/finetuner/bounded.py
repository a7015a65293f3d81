"""BoundedPertNN: networks that say how far a scale lies from a fixed one, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zopeft.finetuner.pertnn import PertNN

if TYPE_CHECKING:
    from zopeft.finetuner.config import FineTunerConfig

REACH = 3.0
"""Standard deviations beyond which a feature reads as its end: a state that was never met
while learning is taken for the farthest one that was."""


class BoundedPertNN(PertNN):
    """A fixed scale a group, which the features move by a bounded factor.

    ``raw_i = prior_g exp(bound tanh(w2_g . tanh(w1_g x_i + b1_g) + b2_g))`` with
    ``x = clamp((features - center) / spread, -REACH, REACH)``; a feature that is NaN, not
    seen yet, reads as its center. With ``w2 = b2 = 0``, as at the start, ``raw = prior``.

    Args:
        groups: Number of groups G.
        features: Number of features F a block.
        hidden: Hidden units H of each network.
        bound: Largest ``|log(raw / prior)|``, above 0.
        generator: CPU generator of the start; None draws from torch's global one.
    """

    prior: Tensor
    center: Tensor
    spread: Tensor

    def __init__(
        self,
        groups: int,
        features: int,
        hidden: int,
        bound: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(groups, features, hidden, generator)
        self.bound = bound
        torch.nn.init.zeros_(self.w2)
        torch.nn.init.zeros_(self.b2)
        self.register_buffer("prior", torch.ones(groups))
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        """Returns the raw scales, above 0; see `PertNN.forward`."""
        return self.prior.index_select(0, group) * self.deviation(x, group).exp()

    def deviation(self, x: Tensor, group: Tensor) -> Tensor:
        """Returns ``log(raw / prior)``, in [-bound, bound], [N]."""
        return self.bound * torch.tanh(self.inner(x, group))

    def inner(self, x: Tensor, group: Tensor) -> Tensor:
        """Returns the networks' outputs before the outer tanh, [N]."""
        return super().inner(self.standard(x), group)

    def standard(self, x: Tensor) -> Tensor:
        """Returns the features as the networks read them, [N, F]."""
        return ((x - self.center) / self.spread).clamp(-REACH, REACH).nan_to_num(nan=0.0)

    def per_group(self) -> list[Tensor]:
        """Returns the tensors that hold a row for each group."""
        return [*super().per_group(), self.prior]

    @torch.no_grad()
    def hold(self, hit: Tensor, value: Tensor) -> None:
        """Makes some networks constant, in place; see `PertNN.hold`."""
        super().hold(hit, torch.zeros_like(value))
        self.prior[hit] = value[hit].to(self.prior)


def nets_of(config: FineTunerConfig, generator: torch.Generator | None = None) -> PertNN:
    """Returns new networks of the kind and the sizes that a configuration names."""
    sizes = len(config.groups), len(config.features), config.hidden
    if config.output == "bounded":
        return BoundedPertNN(*sizes, config.bound, generator)
    return PertNN(*sizes, generator)


def net_shapes(config: FineTunerConfig) -> dict[str, tuple[int, ...]]:
    """Returns the tensors that a fine-tuner's file holds for its networks, by name."""
    groups, features, hidden = len(config.groups), len(config.features), config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "w1": (groups, hidden, features),
        "b1": (groups, hidden),
        "w2": (groups, hidden),
        "b2": (groups,),
    }
    if config.output == "bounded":
        shapes |= {"prior": (groups,), "center": (features,), "spread": (features,)}
    return shapes
