"""Accuracy of choosing among options, as a loss function: no answer needs to be generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zopeft.probing.examples import tell
from zopeft.ranks import ALONE, Ranks
from zopeft.tasks.dealing import dealt
from zopeft.tasks.feed import Feed
from zopeft.tasks.logits import narrow_logits
from zopeft.tasks.loss import option_scores, scores_of
from zopeft.tasks.objectives.sampling import ScoreError
from zopeft.tasks.objectives.whole import WholeScore


class AccuracyLoss:
    """``-accuracy`` of a "choice" batch: the option with the highest score is chosen.

    Args:
        score: Another metric of the options by number, in place of accuracy.

    A batch may have a layout and its probes may share a forward, as with
    `zopeft.tasks.loss.TaskLoss`.
    """

    def __init__(self, score: WholeScore | None = None) -> None:
        self.score = score

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
        chosen = [scores_of(one, batch).argmax(-1) for one in copies]
        if self.score is None:
            tell(lambda: _right(chosen, right))
        found = [self._value(own, right) for own in chosen]
        losses = -torch.stack(found)
        # What is not finite has no likeliest option.
        return torch.where(copies.isfinite().flatten(1).all(1), losses, torch.nan)

    def _value(self, chosen: Tensor, right: Tensor) -> Tensor:
        if self.score is None:
            return (chosen == right).float().mean()
        try:
            found = self.score.value(*_named(chosen, right))
        except ScoreError:
            found = float("nan")
        return torch.tensor(found, dtype=torch.float32, device=right.device)

    def measured(self, model: Any, feed: Feed, batch_size: int, ranks: Ranks = ALONE) -> float:
        """Returns the metric of all rows of a feed together.

        Args:
            model: The model, in eval mode.
            feed: Makes the batches.
            batch_size: Examples of a batch.
            ranks: The processes that share the batches out.

        Raises:
            ScoreError: It is no number.
        """
        assert self.score is not None
        chosen = torch.zeros(len(feed.data), dtype=torch.int64)

        def find(one: Any, last: bool) -> tuple[list[int], Tensor]:
            places, _, batch = one
            with torch.inference_mode():
                return places, option_scores(model, batch).argmax(-1).cpu()

        for places, found in dealt(ranks, feed.batches(batch_size), find):
            chosen[places] = found
        right = torch.tensor([one.label or 0 for one in feed.data])
        return self.score.value(*_named(chosen, right))

    def needed(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the flat places [U] whose logits are read, see `zopeft.BatchLoss`."""
        places: Tensor = batch["predictors"]
        return places


def _right(chosen: Sequence[Tensor], right: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the losses [P, B] of examples with options, and their parts of all [B]."""
    losses = -torch.stack([(own == right).float() for own in chosen])
    return losses, torch.full_like(losses[0], 1.0 / len(right))


def _named(chosen: Tensor, right: Tensor) -> tuple[list[str], list[tuple[str, ...]]]:
    """Options by number, as a metric takes answers and right ones."""
    return [str(one) for one in chosen.tolist()], [(str(one),) for one in right.tolist()]
