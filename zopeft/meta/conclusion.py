"""What a meta-training by the lr-free objective comes to: scales, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks import Blocks
from zopeft.meta.signal import best_lr, closed_form, objective


@dataclass(frozen=True)
class Conclusion:
    """The scales that statistics ask for.

    Attributes:
        measured: S, E and h of the blocks, float64, each [N].
        scales: What they ask for by the rule, [N].
        used: The scales with the blocks' budget kept, [N].
        gain: ``J(used) - J(ones)``.
    """

    measured: tuple[Tensor, Tensor, Tensor]
    scales: Tensor
    used: Tensor
    gain: float

    @classmethod
    def of(
        cls,
        measured: tuple[Tensor, Tensor, Tensor],
        blocks: Blocks,
        rms: Tensor,
        rule: str,
        start: Tensor | None = None,
    ) -> Conclusion:
        """Draws it.

        Args:
            measured: S, E and h of the blocks, float64, each [N].
            blocks: The blocks, [N].
            rms: Root mean square of each block's weights, [N].
            rule: One of `zopeft.meta.options.RULES`.
            start: Scales that the step goes from in place of ones, [N]; S, E and h are those of
                directions of scale one nevertheless, for which the step is the same.
        """
        scales = closed_form(*measured, rms, rule)
        scales = scales if start is None else scales * start.to(scales)
        numels = torch.tensor(blocks.numels, dtype=torch.float64, device=scales.device)
        used = scales * (numels.sum() / (numels * scales.square()).sum()).sqrt()
        gain = objective(used, *measured) - objective(torch.ones_like(used), *measured)
        return cls(measured, scales, used, float(gain))

    def told(self, blocks: Blocks) -> dict[str, Any]:
        """Returns what an artifact's record tells of it."""
        rows = zip(blocks, *(each.tolist() for each in (*self.measured, self.used)), strict=True)
        return {
            "log_gain_over_ones": self.gain,
            "best_lr": best_lr(self.used, *self.measured),
            "best_lr_of_ones": best_lr(torch.ones_like(self.used), *self.measured),
            "statistics": {
                block.name: {
                    "role": block.role,
                    "signal": s,
                    "energy": e,
                    "curvature": h,
                    "scale": u,
                }
                for block, s, e, h, u in rows
            },
        }
