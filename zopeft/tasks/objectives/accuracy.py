"""Accuracy of choosing among options, as a loss function: no answer needs to be generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import scores_of


class AccuracyLoss:
    """``-accuracy`` of a "choice" batch: the option with the highest score is chosen.

    A batch may have a layout and its probes may share a forward, as with
    `zopeft.tasks.loss.TaskLoss`.
    """

    flat = True
    """See `zopeft.tasks.objectives.scored.ScoreLoss`."""

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """Returns the loss of a batch, 0-dim fp32."""
        return self.stacked(model, batch, 1)[0]

    def stacked(self, model: Any, batch: Mapping[str, Any], count: int) -> Tensor:
        """Runs the model once on copies of a batch and returns the loss of each, fp32 [P]."""
        places = self.needed(batch)
        logits = narrow_logits(model, batch, places, count)
        right = batch["option_label"]
        copies = logits.unflatten(0, (count, len(places)))
        found = [(scores_of(one, batch).argmax(-1) == right).float().mean() for one in copies]
        losses = -torch.stack(found)
        # What is not finite has no likeliest option.
        return torch.where(copies.isfinite().flatten(1).all(1), losses, torch.nan)

    def needed(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the flat places [U] whose logits are read, see `zopeft.BatchLoss`."""
        places: Tensor = batch["predictors"]
        return places
