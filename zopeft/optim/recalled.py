"""Recalled steps: records of a journal in place of estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zopeft.errors import input_error
from zopeft.optim.record import StepRecord
from zopeft.optim.step import Step

if TYPE_CHECKING:
    from zopeft.optim.zeroth_order import ZerothOrder

OWN = "use the journal of this run"


def recalled(method: ZerothOrder, record: StepRecord) -> Step:
    """Returns the step that is due as a record has it.

    Args:
        method: The method.
        record: The record.

    Raises:
        InputError: The record is of another step, or of a run with another seed, number of
            directions or weight decay.
    """
    number, seed, decay = method.steps, method.due_seed, method.weight_decay
    if (record.step, record.seed) != (number, seed):
        raise input_error(
            "journal",
            f"step {number} of this run has another address than the record's",
            f"step {record.step}, seed {record.seed}",
            OWN,
        )
    estimator, found = method.estimator, len(record.projected_grads)
    if not method.single and found != estimator.directions:
        what = f"this run has {estimator.directions} directions a step"
        raise input_error("journal", what, found, OWN)
    if record.decay != decay:
        raise input_error(
            "journal",
            f"step {record.step} was made with weight decay {record.decay}, not with",
            decay,
            "give the optimizer that of the run",
        )
    scales = None
    if record.scales is not None:
        scales = torch.tensor(record.scales, device=method.engine.device)
    looks = (record.mirror if estimator.one_sided else record.centre) is not None
    step = Step(method, number, seed, record.eps, scales, looks, record)
    method.selection.settle(step)
    method.budget.settle(step)
    return step
