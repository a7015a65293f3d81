"""The checks of a zeroth-order method's arguments."""

from __future__ import annotations

import math
from typing import Any

from zopeft.blocks import Blocks
from zopeft.errors import input_error


def check_arguments(
    name: str,
    blocks: Any,
    lr: Any,
    eps: Any,
    weight_decay: float,
    max_bad_steps: int,
    clip: float,
) -> None:
    """Checks the arguments of `ZerothOrder`.

    Args:
        name: The method's name, for messages.
        blocks: Must be a `Blocks`.
        lr: Must be "auto", or finite and >= 0.
        eps: Must be finite and > 0.
        weight_decay: Must be finite and >= 0.
        max_bad_steps: Must be >= 1.
        clip: Must be finite and >= 0.

    Raises:
        InputError: An argument is not what it must be.
    """
    if not isinstance(blocks, Blocks):
        raise input_error(
            name, "takes blocks", type(blocks).__name__, "pass zopeft.discover(model)"
        )
    if lr != "auto" and (isinstance(lr, str) or not (math.isfinite(lr) and lr >= 0)):
        raise input_error(f"{name} lr", "must be a number >= 0 or 'auto'", lr)
    for label, value, good, rule in (
        ("eps", eps, math.isfinite(eps) and eps > 0, "> 0"),
        ("weight_decay", weight_decay, math.isfinite(weight_decay) and weight_decay >= 0, ">= 0"),
        ("max_bad_steps", max_bad_steps, max_bad_steps >= 1, ">= 1"),
        ("clip", clip, math.isfinite(clip) and clip >= 0, ">= 0"),
    ):
        if not good:
            raise input_error(f"{name} {label}", f"out of range, must be {rule}", value)
