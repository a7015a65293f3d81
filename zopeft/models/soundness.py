"""Weights that are not finite: found before a run, and never written by one."""

from __future__ import annotations

import torch
from torch import nn

from zopeft.blocks.shards import local


def spoilt(model: nn.Module) -> str:
    """Returns the name of the first weight that is not finite, with how many numbers; "" for none.

    Weights that are not in memory, or quantised, are not looked at.

    Args:
        model: The model.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Of what processes share out each looks at its own part.
            weight = local(parameter)
            plain = type(weight) is torch.Tensor and weight.is_floating_point()
            if weight.is_meta or not plain or weight.dtype.itemsize < 2:
                continue
            # A sum needs no memory; only where it is not finite are the numbers counted.
            if not bool(weight.sum(dtype=torch.float32).isfinite()):
                count = int((~weight.isfinite()).sum())
                if count:
                    return f"{name} ({count} of {weight.numel()} numbers)"
    return ""
