"""Matching: which group of a fine-tuner serves which block of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Block, Blocks
from zopeft.blocks.roles import OTHER
from zopeft.errors import input_error
from zopeft.finetuner.config import FineTunerConfig, Group
from zopeft.finetuner.normalisation import normalisation_weights

LAYER_ROLE = "layer"
_HOWS = ("name", "role", "layer", "depth", "none")
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Match:
    """Which group serves each block.

    Attributes:
        group: Index of each block's group, -1 where none, long [N].
        how: ``name``, ``role``, ``layer``, ``depth`` or ``none`` for each block [N].
        numels: Elements of each block [N].
        blocks: The blocks.
        config: The fine-tuner's configuration.
        counted: What blocks count in the normalisation where that is not their size, 0 for
            those that count their size [N]; None where all do.
    """

    group: Tensor
    how: tuple[str, ...]
    numels: Tensor
    blocks: Blocks
    config: FineTunerConfig
    counted: Tensor | None = None
    _moved: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _counted: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)
    _depths: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns `group` and `numels` on a device; each device is copied to once."""
        if device not in self._moved:
            self._moved[device] = (self.group.to(device), self.numels.to(device))
        return self._moved[device]

    def weights(self, numels: Tensor) -> Tensor:
        """Returns what each block counts in the normalisation, [N], given the blocks' sizes."""
        if self.counted is None:
            return numels
        if numels.device not in self._counted:
            self._counted[numels.device] = self.counted.to(numels.device)
        counted = self._counted[numels.device].to(numels.dtype)
        return torch.where(counted > 0, counted, numels)

    def depths(self, device: torch.device) -> Tensor:
        """Returns each block's relative depth, NaN outside the layers, float32 [N]."""
        if device not in self._depths:
            found = [math.nan if block.depth is None else block.depth for block in self.blocks]
            self._depths[device] = torch.tensor(found, device=device)
        return self._depths[device]

    @property
    def matched(self) -> Tensor:
        """Which blocks have a group, bool [N]."""
        return self.group >= 0

    @property
    def count(self) -> int:
        """Number of blocks that have a group."""
        return sum(how != "none" for how in self.how)

    @property
    def report(self) -> str:
        """One line: how many blocks were matched and how, and which were not."""
        counts = Counter(self.how)
        ways = ", ".join(f"{counts[how]} by {how}" for how in _HOWS[:-1] if counts[how])
        line = f"{self.count} of {len(self.how)} blocks matched"
        line += f" ({ways})" if ways else ""
        if counts["none"]:
            roles = Counter(
                b.role for b, h in zip(self.blocks, self.how, strict=True) if h == "none"
            )
            shown = [f"{n} {role}" for role, n in roles.most_common(_SHOWN)]
            more = f" and {len(roles) - _SHOWN} more roles" if len(roles) > _SHOWN else ""
            line += f"; at the neutral scale 1: {', '.join(shown)}{more}"
        if self.config.architecture != self.blocks.architecture:
            line += f"; learned on {self.config.architecture}, used on {self.blocks.architecture}"
        return line

    def rows(self) -> list[dict[str, Any]]:
        """One dict a block: ``block role layer how group group_role group_layer``."""
        rows = []
        for block, how, index in zip(self.blocks, self.how, self.group.tolist(), strict=True):
            group = self.config.groups[index] if index >= 0 else None
            rows.append(
                {
                    "block": block.name,
                    "role": block.role,
                    "layer": block.layer,
                    "how": how,
                    "group": None if group is None else group.key,
                    "group_role": None if group is None else group.role,
                    "group_layer": None if group is None else group.layer,
                }
            )
        return rows


def groups_of(blocks: Blocks, sharing: str) -> list[Group]:
    """Returns the group table of a new fine-tuner.

    Args:
        blocks: The blocks it is to be learned on.
        sharing: ``block``: a group for each block. ``layer``: one for all blocks of a layer,
            and one for each block outside the layers. ``role``: one for all blocks of a role
            on tensors of a role, whatever their layer, and one for each block of no known role.
    """
    groups: dict[object, Group] = {}
    for block in blocks:
        if sharing == "role" and block.base_role != OTHER:
            key = _role_key(block.role, block.base_role)
            groups.setdefault(key, Group(key, block.role, block.base_role, None, None))
            continue
        if sharing == "layer" and block.layer is not None:
            shared = Group(f"layer {block.layer}", LAYER_ROLE, LAYER_ROLE, block.layer, block.depth)
            groups.setdefault(shared.key, shared)
        else:
            own = Group(block.key, block.role, block.base_role, block.layer, block.depth)
            groups[block.name] = own
    return list(groups.values())


def _role_key(role: str, base_role: str) -> str:
    return f"role {role}" if role == base_role else f"role {base_role} {role}"


def match_blocks(config: FineTunerConfig, blocks: Blocks, allow_none: bool = False) -> Match:
    """Matches groups to blocks.

    Each block takes the first group found by: its role, where roles share a group; the name of
    its base tensor; its role and layer; its role at the nearest relative depth; else none. A
    group learned on the same kind of adapter goes before one learned on the base tensor. Names
    and indices inside layers count only between models of the same number of layers: in a
    deeper or shallower sibling, layer 3 is another place.

    Args:
        config: The fine-tuner's configuration.
        blocks: The blocks to serve.
        allow_none: Accept that no block is matched.

    Raises:
        InputError: No block is matched, and `allow_none` is off.
    """
    table = _Table(config.groups, same_layers=config.num_layers == blocks.num_layers)
    shared = config.sharing == "layer"
    found = [table.find(block, shared) for block in blocks]
    match = Match(
        group=torch.tensor([index for index, _ in found], dtype=torch.long),
        how=tuple(how for _, how in found),
        numels=torch.tensor(blocks.numels, dtype=torch.float32),
        blocks=blocks,
        config=config,
        counted=normalisation_weights(config, blocks),
    )
    if match.count == 0 and not allow_none:
        raise input_error(
            "fine-tuner",
            "none of its groups matches a block of this model "
            f"({match.report}; it serves {_roles(config.groups)})",
            do="take a fine-tuner of this model's family and space",
        )
    return match


def _roles(groups: Sequence[Group]) -> str:
    roles = [role for role, _ in Counter(group.role for group in groups).most_common()]
    return ", ".join(roles[:_SHOWN]) + (", ..." if len(roles) > _SHOWN else "")


class _Table:
    """The groups, by everything that a block can be matched on."""

    def __init__(self, groups: Sequence[Group], same_layers: bool) -> None:
        self.same_layers = same_layers
        self.by_key: dict[tuple[str, str, str], int] = {}
        self.by_layer: dict[tuple[str, str, int | None], int] = {}
        self.by_role: dict[tuple[str, str], list[tuple[float, int]]] = {}
        self.by_shared: dict[str, int] = {}
        for index, group in enumerate(groups):
            role = (group.role, group.base_role)
            self.by_key.setdefault((group.key, *role), index)
            self.by_layer.setdefault((*role, group.layer), index)
            self.by_shared.setdefault(group.key, index)
            if group.depth is not None:
                self.by_role.setdefault(role, []).append((group.depth, index))

    def find(self, block: Block, shared: bool) -> tuple[int, str]:
        """Returns the block's group and how it was found; (-1, "none") where there is none."""
        roles = [(block.role, block.base_role)]
        if block.role != block.base_role:
            roles.append((block.base_role, block.base_role))
        if shared and block.layer is not None:
            roles = [(LAYER_ROLE, LAYER_ROLE)]
        for role in roles:
            if _role_key(*role) in self.by_shared:
                return self.by_shared[_role_key(*role)], "role"
        same_place = self.same_layers or block.layer is None
        for role in roles if same_place else ():
            if (block.key, *role) in self.by_key:
                return self.by_key[(block.key, *role)], "name"
        # A role that says nothing is no reason to pair two tensors.
        roles = [role for role in roles if role[0] != OTHER]
        for role in roles if same_place else ():
            if (*role, block.layer) in self.by_layer:
                return self.by_layer[(*role, block.layer)], "layer"
        depth = block.depth
        for role in roles if depth is not None else ():
            near = self.by_role.get(role)
            if near and depth is not None:
                return min(near, key=lambda one: abs(one[0] - depth))[1], "depth"
        return -1, "none"
