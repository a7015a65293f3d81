"""Scores: what the log-probabilities of options say of a model, under names that others use.

Every function takes a matrix of scores, one row an example and one column an option, and knows
nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptionScores:
    """The log-probabilities of every example's options, and what they may be divided by.

    Attributes:
        sums: float64 [N, C], ``log p(option | prompt)``; -inf where an example has fewer options.
        tokens: Tokens of each option [N, C].
        texts: Each example's options as text, without the space before them.
        right: The right option's index [N].
    """

    sums: Tensor
    tokens: Tensor
    texts: Sequence[tuple[str, ...]]
    right: Tensor

    @property
    def by_token(self) -> Tensor:
        """Mean log-probability of an option's tokens [N, C]: zopeft's ``accuracy``."""
        return self.sums / self.tokens.clamp(min=1)

    @property
    def by_character(self) -> Tensor:
        """Log-probability by character [N, C]: lm-evaluation-harness's ``acc_norm``."""
        return self.sums / self._sizes(len)

    @property
    def by_byte(self) -> Tensor:
        """Log-probability by byte of UTF-8 [N, C]: lm-evaluation-harness's ``acc_bytes``."""
        return self.sums / self._sizes(lambda text: len(text.encode()))

    @property
    def labels(self) -> tuple[str, ...]:
        """The options, where all examples have the same in the same order; else ()."""
        first = self.texts[0]
        return tuple(first) if all(tuple(one) == tuple(first) for one in self.texts) else ()

    def _sizes(self, size: Any) -> Tensor:
        width = self.sums.shape[1]
        rows = [[max(1, size(t)) for t in one] + [1] * (width - len(one)) for one in self.texts]
        return torch.tensor(rows, dtype=self.sums.dtype)


def accuracy(scores: Tensor, right: Tensor) -> float:
    """Returns the share of rows whose largest score is the right option's.

    Args:
        scores: [N, C]; the first of equal ones counts.
        right: Indices [N].
    """
    return float((scores.argmax(-1) == right).double().mean())


def calibrated(scores: Tensor) -> Tensor:
    """Takes from every label what the model gives it whatever it reads.

    ``s'[i, c] = s[i, c] - mean over k of s[k, c]``: a model that gives "great" more than
    "terrible" after any prompt at all says nothing by it. No label is looked at. It takes for
    granted that rows of all classes were scored: where nearly all are of one class, the mean is
    that class's evidence, and the result is worse than the scores.

    Args:
        scores: Log-probabilities of labels [N, C], the same labels in every row.

    Returns:
        [N, C], each column with mean 0.

    References:
        Calibrate Before Use: Improving Few-Shot Performance of Language Models (Zhao et al.
        2021), section 4, which measures the bias on a text without content; Batch Calibration:
        Rethinking Calibration for In-Context Learning and Prompt Engineering (Zhou et al. 2023),
        which measures it on the rows themselves, as is done here, with the mean of
        log-probabilities.
    """
    return scores - scores.mean(0, keepdim=True)


def shares(chosen: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Returns the share of rows that each label was chosen for.

    Args:
        chosen: Indices into `labels` [N].
        labels: The labels; of equal ones, the shares are added.
    """
    counts = torch.bincount(chosen, minlength=len(labels)).double() / max(1, len(chosen))
    found: dict[str, float] = {}
    for label, share in zip(labels, counts.tolist(), strict=True):
        found[label] = found.get(label, 0.0) + share
    return found


def choice_scores(found: OptionScores) -> dict[str, Any]:
    """Returns accuracies by every way of comparing options of unequal length, and the bias.

    Returns:
        ``accuracy``: by the mean log-probability of tokens, as MeZO compares; ``acc``, ``acc_norm``
        and ``acc_bytes``: by sum, by character and by byte, as lm-evaluation-harness. Where all
        rows have the same labels: ``calibrated_accuracy``, by `calibrated` means of tokens;
        ``predicted`` and ``labels``, the share of rows that each label was predicted for and is
        right for.
    """
    by_token, right = found.by_token, found.right
    result: dict[str, Any] = {
        "accuracy": accuracy(by_token, right),
        "acc": accuracy(found.sums, right),
        "acc_norm": accuracy(found.by_character, right),
        "acc_bytes": accuracy(found.by_byte, right),
    }
    if found.labels:
        result |= {
            "calibrated_accuracy": accuracy(calibrated(by_token), right),
            "predicted": shares(by_token.argmax(-1), found.labels),
            "labels": shares(right, found.labels),
        }
    return result
