"""SensZOQ: MeZO on the few weights that matter most, whose places were learned once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopeft.blocks import Blocks
from zopeft.engine.direction import Direction
from zopeft.engine.picked import Picked
from zopeft.engine.vector import Vector
from zopeft.errors import input_error
from zopeft.finetuner.mask import Mask
from zopeft.optim.declared import Options, option
from zopeft.optim.step import Plan, Step
from zopeft.optim.zeroth_order import ZerothOrder


@dataclass(frozen=True)
class SensitiveOptions(Options):
    """The options of `Sensitive`."""

    mask: str = option("", "file of the mask, or a fine-tuner's folder that has one; needed")


class Sensitive(ZerothOrder):
    """``u = m * z``, m the mask of some 0.1 % of the weights; ``theta <- theta - lr g u``.

    The mask has the places of the largest squared gradients on pre-training text, learned once
    for a base model (`zopeft.sensitive_mask`, or ``zopeft meta-train meta.mask=0.001``) and the
    same for all tasks. Two forward passes a step, no state, eight bytes a picked weight; all
    others stay still, bit for bit. u is not lengthened to make up for what is left out, so its
    learning rates are larger than MeZO's.

    Published settings: share 0.001, lr and eps as for MeZO. The paper then holds all other
    weights in 4 bit, which is not done here: the weights that are trained lie in their tensors.

    Args:
        blocks: The blocks to train, as `zopeft.discover` gives them, [N].
        mask: A `zopeft.Mask`, or the file or folder that has one.
        **options: The arguments of `ZerothOrder`.

    Raises:
        InputError: There is no mask, it is of another model, or an argument is out of range.

    References:
        Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity", 2024 (SensZOQ),
        equation 3.
    """

    Options = SensitiveOptions
    required = ("mask",)
    spaces = ("full", "adapter")
    shards = False

    def __init__(self, blocks: Blocks, mask: Mask | str | Path = "", **options: Any) -> None:
        if isinstance(mask, str) and not mask:
            do = "give a file: make one with zopeft.sensitive_mask(model, batches)"
            raise input_error("Sensitive mask", "needs a mask", None, do)
        if not isinstance(mask, Mask | str | Path):
            do = "give a zopeft.Mask, or its file"
            raise input_error("Sensitive mask", "takes a mask", type(mask).__name__, do)
        self.mask = mask if isinstance(mask, Mask) else Mask.load(mask)
        if isinstance(blocks, Blocks):
            self.places = self.mask.fitted(blocks)
        super().__init__(blocks, **options)
        # Where the file lies is no part of the run, what stands in it is.
        self.options["mask"] = self.mask.digest()

    def along(self, direction: Direction) -> Vector:
        """See `ZerothOrder.along`: its part on the mask."""
        return Picked(direction, self.places)

    def plan(self, step: Step) -> Plan:
        """See `ZerothOrder.plan`."""
        count = self.estimator.directions
        directions = [self.along(step.direction(number)) for number in range(count)]
        gradients = yield from step.gradients(directions)
        return [step.descend(directions, gradients)]
