"""Features: what a PertNN reads about a block.

A feature is one function and one line in `FEATURES`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.finetuner.course import Reading
from zopeft.registry import Registry

_SMALLEST = 1e-16
INPUTS = ("raw", "log")
"""How networks read features: as they are, or `compressed`."""
UNITS = {
    "mean": (1e-3, 8.0),
    "variance": (1e-6, 8.0),
    "loss_plus": (1.0, 1.0),
    "loss_minus": (1.0, 1.0),
    "scale": (1.0, 1.0),
}
"""Unit u and span s of the features that are `compressed`: weights of 1e-3 are small in any model,
and from there to the largest there are, norms of 1e2, a logarithm moves by less than 25."""


@dataclass(frozen=True)
class Observed:
    """What the optimizer has seen when the scales of a step are asked for.

    Attributes:
        mean: Mean of each block's values [N].
        variance: Their unbiased variance [N].
        losses: The last step's two losses, (plus, minus) [2]; 0 before the first step.
        scale: Each block's last raw scale, before normalisation [N]; 1 before the first step.
        depth: Each block's relative depth in [0, 1], NaN outside the layers [N]; None: NaN.
        reading: Where the run stands.
    """

    mean: Tensor
    variance: Tensor
    losses: Tensor
    scale: Tensor
    depth: Tensor | None = None
    reading: Reading = field(default_factory=Reading)


Feature = Callable[[Observed], Tensor]

_FUNCTIONS: dict[str, Feature] = {
    "mean": lambda seen: seen.mean,
    "variance": lambda seen: seen.variance,
    "loss_plus": lambda seen: seen.losses[0].expand_as(seen.mean),
    "loss_minus": lambda seen: seen.losses[1].expand_as(seen.mean),
    "scale": lambda seen: seen.scale,
    "depth": lambda seen: _everywhere(seen, math.nan) if seen.depth is None else seen.depth,
    "log_loss": lambda seen: _everywhere(seen, seen.reading.log_loss),
    "loss_share": lambda seen: _everywhere(seen, seen.reading.loss_share),
    "change": lambda seen: _everywhere(seen, seen.reading.change),
    "bend": lambda seen: _everywhere(seen, seen.reading.bend),
    "log_rms": lambda seen: 0.5 * _square(seen).clamp_min(_SMALLEST).log(),
}


def _everywhere(seen: Observed, value: float) -> Tensor:
    return torch.full_like(seen.mean, value)


def _square(seen: Observed) -> Tensor:
    return seen.variance + seen.mean.square()


FEATURES = Registry(
    "feature",
    _FUNCTIONS,
    {
        "mean": "mean of the block's values",
        "variance": "unbiased variance of the block's values",
        "loss_plus": "last step's loss at weights + eps u",
        "loss_minus": "last step's loss at weights - eps u",
        "scale": "the block's last raw scale",
        "depth": "relative depth of the block's layer, 0 to 1",
        "log_loss": "log of the running loss",
        "loss_share": "log of the running loss, as a share of the run's first",
        "change": "log of the running |loss_plus - loss_minus|, as a share of its first",
        "bend": "log of the running loss_plus + loss_minus - 2 loss, as a share of its first; "
        "costs a third forward pass a step",
        "log_rms": "log of the root mean square of the block's values",
    },
)


def check_features(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names as a tuple.

    Raises:
        InputError: A name is unknown or there is none.
    """
    if not names:
        raise input_error("features", "none given", do="known: " + ", ".join(FEATURES))
    for name in names:
        FEATURES[name]
    return tuple(names)


def stack_features(names: Sequence[str], seen: Observed, inputs: str = "raw") -> Tensor:
    """Returns the features of all blocks, in the order of `names`, [N, F].

    Args:
        names: Names of features.
        seen: What the optimizer has seen.
        inputs: One of `INPUTS`.
    """
    found = torch.stack([FEATURES[name](seen) for name in names], dim=-1)
    return found if inputs == "raw" else compressed(tuple(names), found)


def compressed(names: tuple[str, ...], features: Tensor) -> Tensor:
    """Returns features of a few units at most, whatever the sizes of a model's weights.

    ``x -> sign(x) log(1 + |x| / u) / s`` with u and s of `UNITS`; features without a unit are
    logarithms or shares already, and stay as they are. Raw, the norms of some models (weights of
    Gemma 3 have variances to 4e4) drive all hidden units of their networks to +-1, where they
    can neither read anything nor learn. A fixed transform, and not the statistics of one model,
    since the same networks serve derivatives, adapters and other sizes: there they meet weights
    of sizes that the base model has not.

    Args:
        names: Names of the features [F].
        features: The features [N, F].
    """
    units, spans, listed = _units(names, features.dtype, features.device)
    found = (torch.log1p(features.abs() / units) / spans).copysign(features)
    return found if listed is None else torch.where(listed, found, features)


@functools.cache
def _units(
    names: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns units [F], spans [F] and which features have them [F], None for all."""
    pairs = torch.tensor([UNITS.get(name, (1.0, 1.0)) for name in names])
    listed = torch.tensor([name in UNITS for name in names], device=device)
    units, spans = pairs.to(device, dtype).unbind(1)
    return units, spans, None if bool(listed.all()) else listed


def pool(
    mean: Tensor, variance: Tensor, numels: Tensor, group: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Returns each block's group statistics: mean and variance of all values of the group.

    ``m_g = sum d_i m_i / sum d_i`` and
    ``v_g = sum ((d_i - 1) v_i + d_i (m_i - m_g)^2) / (sum d_i - 1)``.

    Args:
        mean: Means of the blocks [N].
        variance: Their unbiased variances [N].
        numels: Their element counts d [N].
        group: Their groups, long [N]; blocks of group -1 keep their own statistics.
        groups: Number of groups G.

    Returns:
        Pooled mean and variance of each block's group, [N] and [N].
    """
    matched = group >= 0
    # What has no group goes into a slot of its own, and is put back below.
    slot = torch.where(matched, group, group.new_tensor(groups))
    d = numels.to(torch.float64)

    def total(values: Tensor) -> Tensor:
        blank = torch.zeros(groups + 1, dtype=d.dtype, device=d.device)
        return blank.index_add(0, slot, values)[slot]

    count = total(d)
    pooled_mean = total(d * mean.to(d.dtype)) / count
    spread = (d - 1) * variance.to(d.dtype) + d * (mean.to(d.dtype) - pooled_mean).square()
    pooled_variance = total(spread) / (count - 1).clamp_min(1)
    return (
        torch.where(matched, pooled_mean.to(mean.dtype), mean),
        torch.where(matched, pooled_variance.to(variance.dtype), variance),
    )
