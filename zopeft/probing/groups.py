"""Groups: parts of a batch, each of which sees the weights moved along its own direction."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from zopeft.engine.carrier import UnstackableError
from zopeft.engine.vector import Vector
from zopeft.errors import input_error
from zopeft.probing.closure import Closure, GroupedClosure, groupable
from zopeft.probing.probing import Probing

logger = logging.getLogger(__name__)


class Group(tuple):
    """A probe that one group of the batch's examples sees, and no other.

    Example i is of group i modulo K. The probe's loss is K times the group's part of the batch's
    loss, so that the mean over the groups is what the whole batch has at one point.

    Attributes:
        number: The group, from 0.
        groups: K.
    """

    number: int
    groups: int

    def __new__(cls, vector: Vector, step: float, number: int, groups: int) -> Group:
        """Returns the probe."""
        made = super().__new__(cls, (vector, step))
        made.number, made.groups = number, groups
        return made


def run_groups(probing: Probing, probes: Sequence[Group], closure: Closure) -> tuple[Tensor, int]:
    """Runs probes of groups: a forward over the batch for each K of them, where that goes.

    Otherwise each group's rows run by themselves, which is as many rows in more forwards.

    Args:
        probing: What runs probes.
        probes: All K groups at one step, then at the next, [P].
        closure: Has ``grouped(count, only)``, such as `zopeft.probing.batch_loss.BatchLoss`.

    Returns:
        fp32 [P], the losses; and the number of forward passes over the batch.

    Raises:
        InputError: The closure gives no losses of single examples.
    """
    own = groupable(closure)
    if own is None:
        raise input_error(
            "closure",
            "gives no losses of single examples, which the method needs",
            getattr(closure, "__qualname__", type(closure).__name__),
            "pass zopeft.BatchLoss(model, batch)",
        )
    count = probes[0].groups
    sides = [probes[first : first + count] for first in range(0, len(probes), count)]
    if probing.groups_together:
        try:
            return torch.cat([_together(probing, side, own) for side in sides]), len(sides)
        except UnstackableError as error:
            probing.groups_together = not error.always
            logger.info("groups run apart: %s", error)
    columns = []
    for number in range(count):
        found, _ = probing.apart(
            [side[number] for side in sides], partial(own.grouped, count, number)
        )
        columns.append(torch.stack(found))
    return torch.stack(columns, 1).flatten(), len(sides)


def _together(probing: Probing, side: Sequence[Group], closure: GroupedClosure) -> Tensor:
    with probing.stacking.shown(side):
        return closure.grouped(len(side), None).detach().float()
