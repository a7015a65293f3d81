"""What a checkpoint holds of a method beside its param groups and its pace."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zopeft.errors import input_error

if TYPE_CHECKING:
    from zopeft.optim.zeroth_order import ZerothOrder

NEAREST = "nearest"
"""How 16-bit probes were rounded by runs before there was a choice, and stay rounded."""


def state_of(method: ZerothOrder) -> dict[str, Any]:
    """Returns step counters and all state; never noise."""
    return {
        "steps": method.steps,
        "eps": method.eps,
        "skipped": method.skipped,
        "bad_in_a_row": method.bad.in_a_row,
        "forward_passes": method.forward_passes,
        "engine": method.engine.state_dict(),
        "rounding": method.engine.rounding,
        "clip": method.clip.state_dict(),
        "probing": method.probing.state_dict(),
        "watched": method.engine.reads.state(),
        "kept": method.kept.state_dict(),
        "dominant": method.selection.found,
        "budget": method.budget.state_dict(),
        **method._own_state(),
    }


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks that the groups of a state have the numbers that steps are made with.

    Raises:
        InputError: One lacks a learning rate or a weight decay, or it is no finite number.
    """
    for group in groups:
        for name in ("lr", "weight_decay"):
            value = group.get(name)
            number = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
            if value is None or not number or not math.isfinite(value):
                what = f"a group's {name} is no finite number"
                raise input_error("optimizer state", what, f"{value!r:.40}", "take an earlier one")


def load_state(method: ZerothOrder, state: dict[str, Any]) -> None:
    """Takes what `state_of` gave; weights must have been loaded already.

    What checkpoints of earlier versions do not hold is as it was then.
    """
    method.steps, method.skipped = state["steps"], state["skipped"]
    if method.eps_open:
        method.eps = float(state.get("eps", method.eps))
    method.bad.in_a_row = state["bad_in_a_row"]
    method.forward_passes = state["forward_passes"]
    method.engine.adopt()
    method.engine.load_state_dict(state["engine"])
    method.engine.rounding = state.get("rounding", NEAREST)
    if "clip" in state:
        method.clip.load_state_dict(state["clip"])
    method.probing.load_state_dict(state.get("probing"))
    method.engine.reads.load(state.get("watched"))
    method.kept.load_state_dict(state.get("kept", {}))
    method.selection.found = state.get("dominant")
    method.budget.load_state_dict(state.get("budget"))
    method._load_own_state(state)
