"""How a run's batches are laid out: tried out on its first batch, and kept for the whole run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from zopeft.probing.packed import JOINED, PACKED, PADDED
from zopeft.probing.trial import Choice, choose, unfit
from zopeft.training.process_loss import ProcessLoss

logger = logging.getLogger(__name__)

WAYS = (JOINED, PACKED, PADDED)
"""From the way that asks most of a model to the one that asks nothing."""
AS_BEGUN = "as the run began"


def first_choice(trainer: Any, loss: ProcessLoss, batch: Callable[[], Any]) -> Choice:
    """Returns how a run's batches are to be laid out, the same on all of its processes.

    Args:
        trainer: The trainer, whose arguments say what is asked for.
        loss: The loss that is trained.
        batch: Returns the first batch, on its device.

    Raises:
        InputError: "packed" is asked for, and cannot be.
    """
    asked = trainer.args.layout
    reason = unfit(trainer.model, loss)
    if asked != PADDED and reason:
        # Without a batch: to load one may take long.
        found = choose(trainer.model, {}, loss, asked)
    else:
        found = choose(trainer.model, {} if asked == PADDED else batch(), loss.alone, asked)
    if trainer.ranks.several:
        way = WAYS[int(trainer.ranks.compared(torch.tensor([WAYS.index(found.way)])).max())]
        found = found if way == found.way else Choice(way, "as another process of the run")
    if found.way == PADDED and asked != PADDED and hasattr(loss, "needed"):
        logger.warning("batches are padded: %s", found.reason)
    else:
        logger.info("batches are %s: %s", found.way, found.reason)
    return found
