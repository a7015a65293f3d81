"""Shaping: what the scores of a step's probes are turned into before they are compared.

Both leave out how large the scores are, so that a learning rate has other units: losses are between
-1 and 1, whatever the score.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHAPINGS = ("none", "ranks", "rows")
LEAST = 1e-8
"""Spread of a prompt's scores below which they are the same."""


def centred_ranks(losses: Tensor) -> Tensor:
    """Returns the ranks of losses [P] from -0.5 to 0.5, means where they are equal.

    References:
        Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement
        Learning", 2017, section 2: fitness shaping by ranks.
    """
    count = len(losses)
    if count < 2:
        return torch.zeros_like(losses)
    below = (losses[:, None] > losses[None]).sum(1) + 0.5 * (
        (losses[:, None] == losses[None]).sum(1) - 1
    )
    return (below / (count - 1) - 0.5).to(losses)


def by_rows(scores: Sequence[Sequence[float]], samples: int) -> Tensor:
    """Returns losses [P] in which every prompt counts by what its scores differ by.

    The scores of a prompt over the probes are centred and divided by their standard deviation; a
    prompt whose scores are all the same counts nothing.

    Args:
        scores: Of each probe's completions, a prompt's side by side, [P][B S].
        samples: S, completions of a prompt.

    References:
        Shao et al., "DeepSeekMath", 2024, equation 3: the scores of a group of completions of one
        prompt; here the group is what the step's probes make of it.
    """
    found = torch.tensor([list(own) for own in scores], dtype=torch.float64)
    means = found.unflatten(1, (-1, samples)).mean(2)
    spread = means.std(0, correction=0)
    centred = (means - means.mean(0)) / spread.clamp(min=LEAST)
    return -torch.where(spread > LEAST, centred, 0.0).mean(1).float()
