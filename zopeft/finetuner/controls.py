"""Controls: reassigned or constant networks, and how far two sets of networks are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.finetuner.pertnn import PertNN


@torch.no_grad()
def cycle(nets: PertNN, seed: int) -> None:
    """Reassigns the networks to other groups, in place, along one random cycle through all.

    Args:
        nets: The networks; with two groups or more, none keeps its place.
        seed: Seed of the cycle.
    """
    count = nets.b2.shape[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    taken = torch.empty(count, dtype=torch.long)
    taken[order] = order.roll(1)
    for tensor in nets.per_group():
        tensor.copy_(tensor[taken.to(tensor.device)])


@torch.no_grad()
def make_constant(nets: PertNN, group: Tensor, numels: Tensor, scales: Tensor) -> None:
    """Makes each network give the root mean square of its blocks' scales, in place.

    Args:
        nets: The networks; those that serve no block are left alone.
        group: Each block's group, -1 where none, long [N].
        numels: Elements of each block, the weights of the mean [N].
        scales: Raw scales to give [N].
    """
    served = group >= 0
    group, weight = group[served], numels[served].double()
    power = scales.to(weight)[served].square() * weight
    blank = torch.zeros(nets.b2.shape[0], dtype=weight.dtype, device=weight.device)
    total = blank.index_add(0, group, weight)
    value = (blank.index_add(0, group, power) / total.clamp_min(1)).sqrt()
    nets.hold(total > 0, value)


@torch.no_grad()
def distance(nets: PertNN, other: PertNN) -> dict[str, Any]:
    """Returns ``||w - w'|| / ||w'||``: ``total`` over all networks, ``groups`` one by one.

    Raises:
        InputError: The two are of different sizes.
    """
    mine, theirs = _flat(nets), _flat(other).to(nets.b2.device)
    if mine.shape != theirs.shape:
        raise input_error(
            "other",
            "a fine-tuner of another size",
            f"{list(theirs.shape)}",
            f"compare with one of {list(mine.shape)}",
        )
    tiny = torch.finfo(mine.dtype).tiny
    apart, size = (mine - theirs).norm(dim=1), theirs.norm(dim=1)
    return {
        "total": float(apart.norm() / size.norm().clamp_min(tiny)),
        "groups": (apart / size.clamp_min(tiny)).tolist(),
    }


def _flat(nets: PertNN) -> Tensor:
    """Returns the networks' numbers, one row a group, [G, P] in float64."""
    count = nets.b2.shape[0]
    return torch.cat([p.detach().double().reshape(count, -1) for p in nets.parameters()], dim=1)
