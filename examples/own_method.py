"""A zeroth-order method of your own: one class, known by name everywhere.

Run it:  python examples/own_method.py

The class below is "nesterov": it looks for the slope ahead of where it stands, at ``theta - lr
beta m``, m a running mean of its steps. A method is a plan: it yields the points where it wants
losses, is sent them, and returns what to write. The driver runs the probes (stacked, apart,
offloaded, in any dtype), averages micro-batches, journals the losses, replays, resumes, and keeps
the state that is declared in `keeps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

import zopeft
from zopeft.optim.declared import Options, option
from zopeft.optim.state import Kept, PerElement
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class NesterovOptions(Options):
    """The options of `Nesterov`; recipes, the command line and the journal read them here."""

    beta: float = option(0.9, "decay of the running mean", least=0.0, below=1.0)


class Nesterov(ZerothOrder):
    """MeZO whose slope is taken ahead: at ``theta - lr beta m``.

    ``m <- beta m + (1 - beta) g z; theta <- theta - lr m``. Two forward passes a step, one number a
    weight.

    References:
        Nesterov, "A method of solving a convex programming problem with convergence rate
        O(1/k^2)", 1983.
    """

    Options = NesterovOptions
    gradient_units = False
    single = True

    def keeps(self) -> Mapping[str, Kept]:
        """Returns what is kept beside the weights: m."""
        return {"mean": PerElement()}

    def plan(self, step: Step) -> Plan:
        """Looks on both sides of the point ahead, and moves along the mean."""
        z, beta = step.direction(), self.own.beta
        ahead = -step.lr * beta * step.state.held("mean")
        plus, minus = yield [(ahead + step.eps * z).at(1.0), (ahead - step.eps * z).at(1.0)]
        gradient = step.slope(plus, minus)

        def moved(lr: float, weight: Tensor, z: Tensor, mean: Tensor) -> tuple:
            mean.mul_(beta).add_(z, alpha=(1.0 - beta) * gradient)
            return weight.sub_(mean, alpha=lr), mean

        return [step.map(moved, z, state=["mean"])]


def main() -> None:
    """Tunes the embedded model's LoRA on a few batches, by name."""
    from zopeft.cli.main import main as command

    zopeft.register_method(Nesterov)
    words = "tune --method nesterov method.beta=0.8 --lr 3e-3 --task sst2 --steps 100"
    raise SystemExit(command(words.split()))


if __name__ == "__main__":
    main()
