"""R-AdaZO: the second moment is taken of the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from zopeft.methods.mezo_adam import AdamOptions, MeZOAdam
from zopeft.optim.declared import option
from zopeft.optim.step import Step


@dataclass(frozen=True)
class RAdaZOOptions(AdamOptions):
    """The options of `RAdaZO`."""

    adam_eps: float = option(1e-8, "what is added to the second moment", above=0.0)


class RAdaZO(MeZOAdam):
    """Adam whose second moment is that of the running mean, not of single estimates.

    ``m <- b1 m + (1 - b1) g z; v <- b2 v + (1 - b2) m^2; theta <- theta - lr m / sqrt(v +
    adam_eps)``, without bias correction. Two forward passes a step; two fp32 numbers a weight.

    References:
        Shu et al., "Refining Adaptive Zeroth-Order Optimization at Ease", 2025, algorithm 1.
    """

    Options = RAdaZOOptions

    def rule(self, step: Step) -> Callable[..., tuple[Tensor, ...]]:
        """See `MeZOAdam.rule`."""
        beta1, beta2, eps = self.own.beta1, self.own.beta2, self.own.adam_eps

        def moved(lr: float, weight: Tensor, estimate: Tensor, m: Tensor, v: Tensor) -> tuple:
            m.mul_(beta1).add_(estimate, alpha=1.0 - beta1)
            v.mul_(beta2).addcmul_(m, m, value=1.0 - beta2)
            return weight.addcdiv_(m, (v + eps).sqrt_(), value=-lr), m, v

        return moved
