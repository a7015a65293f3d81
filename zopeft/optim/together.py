"""Losses of a model that several processes hold together: all of them make the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from zopeft.blocks.shards import how_sharded, sharing_group
from zopeft.engine import Engine
from zopeft.engine.direction import Probe
from zopeft.optim.executor import InProcess
from zopeft.probing.closure import Closure
from zopeft.probing.probing import Probing


class Together(InProcess):
    """Forward passes in which all of a group's processes take part.

    With tensor parallelism they see one batch, and the first one's loss is all theirs, so that no
    last bit can drive them apart. With FSDP2 each has a batch of its own, or the same one, and the
    loss is the mean over them.

    Args:
        engine: The engine over the blocks to train.
        probing: What runs plain probes.
        group: The processes.
        averages: Whether the losses are averaged.
    """

    def __init__(self, engine: Engine, probing: Probing, group: Any, averages: bool) -> None:
        super().__init__(engine, probing)
        self.group, self.averages = group, averages

    def losses(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """See `Executor.losses`."""
        found, passes = super().losses(probes, closure)
        # In fp64 the mean of equal numbers is that number, whatever their count.
        own = found.detach().double()
        if self.averages:
            parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
            dist.all_gather(parts, own, group=self.group)
            return torch.stack(parts).mean(0).float(), passes
        dist.broadcast(own, group=self.group, group_src=0)
        return own.float(), passes

    def agreed(self, seen: np.ndarray) -> np.ndarray:
        """See `Executor.agreed`: what the first process has seen."""
        device = self.engine.device
        own = torch.from_numpy(np.ascontiguousarray(seen, dtype=np.float32)).to(device)
        dist.broadcast(own, group=self.group, group_src=0)
        return own.cpu().numpy()


def in_process(engine: Engine, probing: Probing) -> InProcess:
    """Returns the executor that runs forward passes here, with others where these are needed."""
    model = engine.blocks.model
    how = how_sharded(model)
    group = sharing_group(model) if how else None
    if group is None:
        return InProcess(engine, probing)
    return Together(engine, probing, group, how == "fsdp")
