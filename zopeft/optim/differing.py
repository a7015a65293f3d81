"""Differing probes: a finite-difference step by which a score that is flat in places changes.

A loss has a slope everywhere; a score of what a model generates changes only where a token does. If
both probes of a step generate the same, nothing is learned of it. So before a run the step along
random directions is widened until all of a few pairs of probes have different scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from zopeft.engine.direction import Direction
from zopeft.noise import role_seed, step_seed
from zopeft.probing.closure import Closure
from zopeft.probing.pair import probe_pair

if TYPE_CHECKING:
    from zopeft.optim.zeroth_order import ZerothOrder

PAIRS = 4
"""Directions that a step is tried along."""
ENOUGH = 1.0
"""Share of them whose two scores must differ: of a pair that hardly ever differs, what differs is
one completion of a batch, and tells little of the direction."""
WIDER, MOST_LOOKS = 2.0, 5
"""A step that is too short is made so much wider, and so many are tried at most."""


@dataclass(frozen=True)
class Differing:
    """What was found of the finite-difference step.

    Attributes:
        eps: The step.
        given: The step that was tried first.
        share: Share of the pairs of probes that differ at `eps`.
        widest: The widest step that was tried.
        forward_passes: What it cost.
    """

    eps: float
    given: float
    share: float
    widest: float
    forward_passes: int

    def to_dict(self) -> dict[str, float]:
        """Returns what was found, for a run's record."""
        return asdict(self)

    @property
    def line(self) -> str:
        """What the user is told."""
        if not self.share:
            return (
                f"eps: {self.eps:g}; the score is the same on both sides of the weights, up to "
                f"{self.widest:g}: nothing can be learned from it until it differs (try sampled "
                "completions, another reward, or a start that sometimes succeeds)"
            )
        found = f"{round(self.share * PAIRS)} of {PAIRS} pairs of probes differ in score"
        wider = "" if self.eps == self.given else f", in place of {self.given:g}"
        return f"eps: {self.eps:g}{wider}: {found}"


@torch.no_grad()
def find_eps(
    method: ZerothOrder, closure: Closure, tell: Callable[[str], None] = lambda line: None
) -> Differing:
    """Returns a step at which a score's probes differ; the method's own if none is found.

    Args:
        method: The method, whose weights stay as they are.
        closure: Returns the negative score of one batch, by the same random numbers every time.
        tell: Called with a line before the first look and at each step that is too short, since
            probes that generate take their time.
    """
    method.engine.adopt()
    seeds = [role_seed(step_seed(method.seed, n), "differing") for n in range(PAIRS)]
    directions = [method.along(Direction(seed, method._scales())) for seed in seeds]
    eps, best, passes = method.eps, (0.0, method.eps), 0
    tell(f"eps: trying {eps:g}: do the scores of {PAIRS} pairs of probes differ?")
    for look in range(MOST_LOOKS):
        eps = method.eps * WIDER**look
        pairs = [probe_pair(method.engine, closure, one, eps) for one in directions]
        passes += 2 * PAIRS
        share = sum(plus != minus for plus, minus in pairs) / PAIRS
        best = max(best, (share, eps), key=lambda found: found[0])
        if share >= ENOUGH:
            break
        if look + 1 < MOST_LOOKS:
            tell(
                f"eps: {round(share * PAIRS)} of {PAIRS} differ at {eps:g}; trying {eps * WIDER:g}"
            )
    return Differing(best[1], method.eps, best[0], eps, passes)
