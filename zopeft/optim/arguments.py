"""The checks of a zeroth-order method's arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zopeft.blocks import Block, Blocks
from zopeft.errors import input_error

if TYPE_CHECKING:
    from zopeft.optim.zeroth_order import ZerothOrder

NUMBER, LEAVE = "give a number", "leave it out"
WHOLE = "choose another method, or load the model whole"
OTHER = "choose another method or other weights"


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


def check_fit(method: ZerothOrder, lr: float | str) -> None:
    """Checks that a run's settings mean something for its method.

    Args:
        method: The method, with its estimator, blocks and weight decay.
        lr: The learning rate as given.

    Raises:
        InputError: See `ZerothOrder.check`.
    """
    name, estimator = type(method).__name__, method.estimator
    found = f"directions={estimator.directions}, sides={estimator.sides}"
    wide, space = (estimator.directions, estimator.sides) != (1, "two"), method.blocks.space
    decay, drawn = method.weight_decay, method.own.decay_to
    drawn = "" if drawn == "zero" else drawn
    sharded = any(block.shard is not None for block in method.blocks)
    shared = "a model that processes share out" if sharded else ""
    for wrong, where, what, got, do in (
        (lr == "auto" and not method.gradient_units, " lr", "has no rule for auto", lr, NUMBER),
        (method.single and wide, "", "chooses its directions itself", found, LEAVE),
        (bool(decay) and not method.decays, " weight_decay", "must be 0", decay, LEAVE),
        (drawn and not decay, " decay_to", "needs a weight_decay above 0", drawn, LEAVE),
        (drawn and space == "scales", " decay_to", "knows no start of scales", drawn, LEAVE),
        (space not in method.spaces, "", "cannot serve these weights", space, OTHER),
        (shared and not method.shards, "", "needs whole matrices in each process", shared, WHOLE),
    ):
        if wrong:
            raise input_error(name + where, what, got, do)


def group_of(block: Block, lr: float, weight_decay: float) -> dict[str, Any]:
    """Returns the param group of a block; vectors (biases, norms) are not decayed."""
    parameter: Tensor = block.parameter
    if block.columns is not None:
        view = parameter.data[..., slice(*block.columns)]
        parameter = nn.Parameter(view, requires_grad=False)
    decay = 0.0 if block.kind == "vector" else weight_decay
    return {"params": [parameter], "name": block.name, "lr": lr, "weight_decay": decay}
