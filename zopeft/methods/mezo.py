"""MeZO: zeroth-order SGD with one seed a step in place of a gradient."""

from __future__ import annotations

from dataclasses import dataclass

from zopeft.optim.budget import GIVEN, MEASURED, TURNS
from zopeft.optim.declared import Options, option
from zopeft.optim.signal import EXAMPLES
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class MeZOOptions(Options):
    """The options of `MeZO`."""

    budget: str = option(
        GIVEN,
        "what shares noise power between vocabulary and the rest: scales, probes, or first steps",
        choices=(GIVEN, MEASURED, TURNS),
    )
    share: str = option(
        GIVEN,
        "what tells lr auto its share of signal in the first steps: a fixed number, or examples",
        choices=(GIVEN, EXAMPLES),
    )


class MeZO(ZerothOrder):
    """ZO-SGD with all scales one: ``theta <- (1 - lr wd) theta - lr projected_grad z``.

    Two forward passes a step, no state beyond a step counter. The arguments are those of
    `ZerothOrder`. Published settings: full weights lr 1e-6 or 1e-7, eps 1e-3; LoRA lr
    1e-4 or 5e-5, eps 1e-2; prefix lr 1e-2 or 1e-3, eps 1e-1. The public code restores
    weights by a third perturbation; here they are never written by a probe.

    With ``budget="measured"`` at most thirteen forward passes before the first step tell how tables
    of the vocabulary and all other blocks share the power of the noise (`zopeft.optim.budget`);
    with "turns" the first 48 steps serve one of the two each, in turn, and tell it on their way.

    With ``share="examples"`` lr="auto" begins with the share of signal that the examples of its
    first batches tell by how far they agree (`zopeft.optim.signal`), in place of a fixed one: its
    loss may fall faster at first, and may end higher.

    References:
        Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023,
        Algorithm 1.
    """

    Options = MeZOOptions

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        gradients = yield from step.gradients()
        return [step.descend(step.directions, gradients)]
