"""QZO: MeZO on the scales of a quantised base, clipped."""

from __future__ import annotations

from typing import Any

from zopeft.blocks import Blocks
from zopeft.methods.mezo import MeZO

CLIP = 2.0
"""Largest projected gradient, in multiples of its running size."""


class QZO(MeZO):
    """``scale <- scale max(1 - lr d z, 0)``, d the clipped slope of the quantisation scales.

    ``d = clip((L(scale (1 + eps z)) - L(scale (1 - eps z))) / (2 eps))``; the codes stay as they
    are. It is ``mezo`` on ``--peft scales``, under the name that people look for: a run by this
    name trains the scales, and its base must be quantised. Two forward passes a step, no memory.

    The paper steps by ``eps z`` whatever a scale's size, and clips d at a constant; here steps are
    relative, so that one eps and one lr serve every quantisation, and the clip follows the run
    (``clip``, 2 of its running size).

    Published settings: lr 1e-5 to 1e-7 and eps 1e-3 in the paper's units; a clip of 100.

    Args:
        blocks: The quantisation scales, ``zopeft.discover(model, space="scales")``, [N].
        clip: As of `ZerothOrder`; None for 2.
        **options: The arguments of `ZerothOrder`.

    Raises:
        InputError: The blocks are no quantisation scales, or an argument is out of range.

    References:
        Zhou et al., "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization", 2025
        (QZO), section 3.
    """

    spaces = ("scales",)

    def __init__(self, blocks: Blocks, clip: float | None = None, **options: Any) -> None:
        super().__init__(blocks, clip=CLIP if clip is None else clip, **options)
