"""Executors: who finds the losses that a step asks for, in this process or elsewhere.

The driver has points and wants losses. How they are had is an executor's business: by forward
passes here (`InProcess`), shared out over processes, or by a server that holds the model. A method
has one in ``method.executor``, which may be replaced before its first step::

    class Elsewhere(zopeft.optim.executor.InProcess):
        def losses(self, probes, closure):
            return ask_the_server(probes), len(probes)

    method.executor = Elsewhere(method.engine, method.probing)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zopeft.engine import Engine
from zopeft.engine.direction import Probe
from zopeft.errors import input_error
from zopeft.optim.looks import run_looks
from zopeft.probing.closure import Closure
from zopeft.probing.probing import Probing


class Executor(Protocol):
    """What the driver asks for losses. The weights are as they were when a call returns."""

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """Returns the losses of one micro-batch at some points: a round of a step's plan.

        A probe is a vector and how far along it the weights are moved, ``theta + step * u``; to
        show it to a model that is here, ``with engine.perturbed(vector, step)``. Most are no more.
        Some ask for more, and say so by their class (`zopeft.optim.looks`,
        `zopeft.probing.groups.Group`): an executor that cannot serve one refuses it.

        Args:
            probes: The points, [P]; those whose step is zero come first if at all.
            closure: Returns the loss of the batch, the same batch at every call; a
                `zopeft.BatchLoss` has it as ``batch``.

        Returns:
            fp32 [P], the losses in this order, and the number of forward passes that they took.
            A loss that cannot be had is not finite: then the step is left out.
        """
        ...

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """Returns what is taken for something that has been seen beside the losses, fp32.

        Where several processes make the same step it is what one of them has seen.

        Args:
            seen: What this process has seen; it goes into the step's record.
        """
        ...


class InProcess:
    """Forward passes in this process, the cheapest way that gives the same losses.

    Args:
        engine: The engine over the blocks to train.
        probing: What runs plain probes: apart, stacked, or with layers shared.
    """

    def __init__(self, engine: Engine, probing: Probing) -> None:
        self.engine, self.probing = engine, probing

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `Executor.losses`."""
        return run_looks(self.engine, self.probing, probes, closure)

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """See `Executor.agreed`: what has been seen here."""
        return seen


def losses_of(executor: Executor, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
    """Asks an executor for losses, and checks what it returns.

    Returns:
        fp32 [P], the losses; and the number of forward passes.

    Raises:
        InputError: It returns something else.
    """
    found: Any = executor.losses(probes, closure)
    good = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)
    if not good or found[0].shape != (len(probes),) or not isinstance(found[1], int):
        name = type(executor).__name__
        got = found[0] if isinstance(found, tuple) and found else found
        told = f"a tensor {list(got.shape)}" if isinstance(got, Tensor) else repr(found)[:80]
        what = f"must return {len(probes)} losses and a number of forward passes"
        raise input_error(f"{name}.losses", what, told, "see zopeft.optim.executor")
    losses: Tensor = found[0]
    return losses if losses.is_floating_point() else losses.to(torch.float32), found[1]
