"""Looks: the kinds of probes that are more, or less, than a loss at a point."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from zopeft.engine.direction import Probe
from zopeft.engine.vector import HERE, Vector
from zopeft.probing.closure import Closure, loss_of
from zopeft.probing.groups import Group, run_groups

if TYPE_CHECKING:
    from zopeft.engine import Engine
    from zopeft.probing.probing import Probing


class Aside(tuple):
    """A probe whose loss tells the curvature and is no part of the step's loss.

    One at the weights themselves runs in a forward of its own, whatever the others share.
    """


class Tangent(tuple):
    """A look at the slope along a vector: its "loss" is the derivative of the loss there.

    It stands behind the probe at the weights themselves, whose loss comes with it.
    """

    def __new__(cls, vector: Vector) -> Tangent:
        """Returns the look along a vector."""
        return super().__new__(cls, (vector, 0.0))


class Watch(Protocol):
    """What looks at a model while it runs."""

    def watching(self) -> AbstractContextManager[Any]:
        """Watches the forward passes inside."""
        ...


class Watched(tuple):
    """The probe at the weights themselves, run alone, with something watching the model.

    Attributes:
        watch: What watches; None where nothing is to be seen.
    """

    watch: Watch | None

    def __new__(cls, watch: Watch | None) -> Watched:
        """Returns the probe."""
        made = super().__new__(cls, HERE)
        made.watch = watch
        return made


def counts(probe: Probe) -> bool:
    """Whether a probe's loss is part of the step's loss."""
    return probe[1] != 0.0 and not isinstance(probe, Aside)


def is_point(probe: Probe) -> bool:
    """Whether a probe asks for the loss at a point and for nothing else."""
    if isinstance(probe, Watched):
        return probe.watch is None
    return type(probe) is tuple or isinstance(probe, Aside)


def run_looks(
    engine: Engine, probing: Probing, probes: Sequence[Probe], closure: Closure
) -> tuple[Tensor, int]:
    """Runs probes; some kinds of looks in forwards of their own.

    Args:
        engine: The engine over the blocks.
        probing: What runs plain probes.
        probes: The probes, [P]; those that run alone come first.
        closure: Returns the loss of the batch.

    Returns:
        fp32 [P], the losses; and the number of forward passes.
    """
    groups = [probe for probe in probes if isinstance(probe, Group)]
    if groups:
        return run_groups(probing, groups, closure)
    if any(isinstance(probe, Tangent) for probe in probes):
        return torch.stack(engine.slope(probes[-1][0], closure)), 1
    losses: list[Tensor] = []
    for probe in probes:
        if not (isinstance(probe, Watched) or (isinstance(probe, Aside) and not probe[1])):
            break
        watch = probe.watch if isinstance(probe, Watched) else None
        with nullcontext() if watch is None else watch.watching():
            losses.append(loss_of(closure))
    ahead = len(losses)
    if ahead == len(probes):
        return torch.stack(losses), ahead
    moved = next((vector for vector, step in probes if step), None)
    # The weights themselves are shown as the other probes are, so that they can share.
    shared = [probe if probe[1] or moved is None else (moved, 0.0) for probe in probes]
    found, passes = probing.run(shared[ahead:], closure)
    return torch.cat([torch.stack(losses), found]) if losses else found, passes + ahead
