"""A step as a method's plan sees it: its directions, its state, and what it may write."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from zopeft.engine.direction import Direction, Probe
from zopeft.engine.vector import HERE, Sum, Vector
from zopeft.noise import direction_seed, role_seed, step_seed
from zopeft.optim.looks import Aside
from zopeft.optim.taken import Taken
from zopeft.optim.writes import Change, Descent, Map, Write

if TYPE_CHECKING:
    from zopeft.optim.record import StepRecord
    from zopeft.optim.state import Chosen
    from zopeft.optim.zeroth_order import ZerothOrder

Plan = Generator[Sequence[Probe], list[float], Sequence[Write]]
"""Yields points to look at, is sent their losses, and returns what to write."""


@dataclass
class Step:
    """One step under way.

    A plan may depend on this, on the losses that it is sent, and on nothing else; so the same
    plan fed with recorded losses does the same step again.

    Args:
        method: The method.
        number: The step's number, from 0.
        seed: 64-bit key of the step.
        eps: Finite-difference step in the units of the weights.
        scales: fp32 [N], multipliers of the blocks' noise; None for ones.
        looks: Whether it also takes the loss that tells the curvature.
        record: The step's record where it is repeated from a journal.

    Attributes:
        chosen: Indices of the blocks that it is about (`zopeft.optim.selection`); None for all.
        taken: What the losses have shown.
        notes: What came from elsewhere, by name, for the record.
    """

    method: ZerothOrder
    number: int
    seed: int
    eps: float
    scales: Tensor | None = None
    looks: bool = False
    record: StepRecord | None = None
    chosen: frozenset[int] | None = None
    taken: Taken = field(default_factory=Taken)
    notes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def options(self) -> Any:
        """The method's own options."""
        return self.method.own

    @property
    def state(self) -> Chosen:
        """The method's state, as the step before has left it, of the blocks it is about."""
        return self.method.kept.of(self.chosen)

    def touches(self, index: int) -> bool:
        """Whether the step is about a block."""
        return self.chosen is None or index in self.chosen

    @property
    def blocks(self) -> list[int]:
        """Indices of the blocks that the step is about."""
        return [n for n in range(len(self.method.blocks)) if self.touches(n)]

    @property
    def count(self) -> int:
        """Which step of the run this is, from 1: what bias corrections ask for."""
        return self.number + 1 - self.method.skipped

    def direction(self, number: int = 0, kept: int = 0) -> Direction:
        """Returns one of the step's random directions, in the run's noise, shapes and scales.

        Args:
            number: Which one, from 0.
            kept: 64-bit key of what its shapes keep for some steps, see `slow` and `once`.
        """
        return Direction(direction_seed(self.seed, number), self.scales, kept, self.chosen)

    @property
    def directions(self) -> list[Vector]:
        """As many random directions as the run takes a step, [K]."""
        return [self.direction(k) for k in range(self.method.estimator.directions)]

    @property
    def lr(self) -> float:
        """The step's learning rate (of the first block), for plans that must know it."""
        if self.record is not None:
            return self.record.lr[0]
        return float(self.method.param_groups[0]["lr"])

    def slow(self, every: int) -> int:
        """Returns a 64-bit key that stays for `every` steps: that of the first one of them."""
        return self.slow_of(self.stage(every))

    def stage(self, every: int) -> int:
        """Returns the number of the step that the key of `slow` is of."""
        return self.number - self.number % every

    def slow_of(self, stage: int) -> int:
        """Returns the key of `slow` of another stage, see `stage`."""
        return step_seed(self.method.seed, stage)

    def once(self, role: str) -> int:
        """Returns a 64-bit key that stays for the run, of a role of its own."""
        return role_seed(self.method.seed, role)

    def dice(self, role: str) -> random.Random:
        """Returns a source of numbers and choices for this step, of a role of its own."""
        return random.Random(role_seed(self.seed, role))

    def note(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns what cannot be made again without a forward pass; it goes into the record.

        Args:
            name: Its name in the record.
            make: Makes it, fp32, where the step is not repeated from a record.
        """
        if self.record is not None:
            found = (self.record.notes or {})[name]
        else:
            seen = np.ascontiguousarray(make(), dtype=np.float32)
            found = self.method.executor.agreed(seen)
        self.notes[name] = found
        return found

    def gradients(
        self, directions: Sequence[Vector] | None = None
    ) -> Generator[Sequence[Probe], list[float], tuple[float, ...]]:
        """Estimates the slope along directions, on two sides or on one, clipped if asked for.

        ``g_k = (L(theta + eps u_k) - L(theta - eps u_k)) / (2 eps)``; see
        `zopeft.optim.estimator.Estimator`. To be used as ``yield from``, once a step.

        Args:
            directions: u, [K]; None for as many random ones as the run takes a step.

        Returns:
            The projected gradients, [K].
        """
        estimator, method = self.method.estimator, self.method
        if directions is None:
            directions = self.directions
        places = estimator.places(self.eps, self.looks)
        probes = [directions[k].at(step) if step else HERE for k, step in places]
        ahead = self.looks and not estimator.one_sided
        if ahead:
            probes.insert(0, Aside(HERE))
        elif self.looks:
            probes[-1] = Aside(probes[-1])
        taken = self.taken
        taken.first = int(ahead or estimator.one_sided)
        taken.count = estimator.directions * (1 if estimator.one_sided else 2)
        taken.mirrored = self.looks and not ahead
        found = yield probes
        own = found[taken.first : taken.first + taken.count]
        raw = estimator.differences(own, found[0] if taken.first else None, self.eps)
        taken.raw += raw
        taken.spread = estimator.spread(raw)
        if self.record is not None:
            # A record holds what was done, whatever the clipping of today.
            taken.gradients = self.record.projected_grads
        else:
            clipped = [method.clip.clipped(gradient) for gradient in raw]
            taken.gradients = estimator.projected(clipped, taken.spread)
        return taken.gradients

    def slope(self, plus: float, minus: float) -> float:
        """Returns ``(plus - minus) / (2 eps)``, clipped if asked for."""
        return self.clipped((plus - minus) / (2.0 * self.eps))

    def clipped(self, slope: float) -> float:
        """Returns a slope as far as the run's clipping lets it go; the record says how far."""
        taken = self.taken
        taken.raw.append(slope)
        if self.record is not None:
            taken.gradients = self.record.projected_grads
            return taken.gradients[len(taken.raw) - 1]
        found = self.method.clip.clipped(slope)
        taken.gradients = (*taken.gradients, found)
        return found

    def one_sided(self, plus: float, here: float) -> float:
        """Returns ``(plus - here) / eps``, clipped if asked for."""
        return self.clipped((plus - here) / self.eps)

    def descend(
        self, directions: Vector | Sequence[Vector], gradients: float | Sequence[float]
    ) -> Descent:
        """Writes ``theta <- (1 - lr wd) theta - lr / K sum_k g_k u_k``.

        Args:
            directions: u, one or [K].
            gradients: g, one or [K].
        """
        if isinstance(directions, Vector):
            directions, gradients = [directions], [gradients]  # type: ignore[list-item]
        return Descent(tuple(directions), tuple(map(float, gradients)))  # type: ignore[arg-type]

    def estimate(self, directions: Sequence[Vector], gradients: Sequence[float]) -> Vector:
        """Returns the estimated gradient ``1 / K sum_k g_k u_k`` as a vector."""
        pairs = zip(gradients, directions, strict=True)
        return Sum(tuple((gradient / len(gradients), u) for gradient, u in pairs))

    def map(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *vectors: Vector,
        state: Sequence[str] = (),
    ) -> Map:
        """Writes what a function makes of the weights and of state of their size.

        On a CPU a function of single elements (``+ - * /``, ``add``, ``addcmul``, ``addcdiv``,
        ``square``, ``sqrt``, ``abs``, ``sign``, ``clamp``, ``<=``, in place or not) is done in one
        compiled pass; any other is run on pieces of the tensors as it stands.

        Args:
            function: From learning rate and weights (decayed), the vectors' numbers and the
                state's to new weights and new state; all but the first are tensors.
            vectors: Vectors that it reads.
            state: Names of state, one number an element.
        """
        return Map(function, vectors, tuple(state))

    def change(self, **values: Any) -> Change:
        """Writes other state: numbers, tensors [N], or tensors of matrices by index."""
        return Change(values)
