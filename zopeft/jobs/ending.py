"""How a tuning run ended: whether its weights are worth having."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zopeft.report.summary import ends

LEAST = 40
"""Steps whose losses tell of the run rather than of its batches."""


def diverged(metrics: Mapping[str, Any], losses: Sequence[float], score: str = "") -> str:
    """Returns what shows that a run diverged; "" where it did not.

    It did where the validation loss at its end is not finite, or more than a nat
    (`zopeft.jobs.bench.run.WORSE`) above that before the first step; where that was not
    measured, the losses of the training's first and last twentieth are compared.

    Args:
        metrics: Scores ``before`` (or None) and ``after``.
        losses: Loss of each step.
        score: What was optimised in place of a loss, which may then have risen; "" for nothing.
    """
    from zopeft.jobs.bench.run import WORSE

    before, after = metrics.get("before"), _number(metrics["after"].get("loss", 0.0))
    if not math.isfinite(after):
        return "the validation loss is not finite"
    if score:
        return ""
    if before is not None:
        first, last, what = _number(before["loss"]), float(after), "validation loss"
    else:
        parts = ends(losses)
        # Of a few single batches, one may well be that much harder than another.
        if len(losses) < LEAST or parts["loss_first"] is None or parts["loss_last"] is None:
            return ""
        first, last, what = parts["loss_first"], parts["loss_last"], "training loss"
    return f"the {what} rose from {first:.4g} to {last:.4g}" if last - first > WORSE else ""


def _number(value: Any) -> float:
    """Returns a loss; one that is not finite is null in the record of a run that goes on."""
    return math.nan if value is None else float(value)
