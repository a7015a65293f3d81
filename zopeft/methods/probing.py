"""Probing: how the two forwards of an estimate are run, apart or as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from zopeft.engine import Direction, Engine
from zopeft.engine.sharing import shared_layers
from zopeft.engine.stacked import UnstackableError
from zopeft.errors import input_error

logger = logging.getLogger(__name__)

PROBES = ("auto", "stacked", "separate")
MOST_TOKENS = {"cpu": 128, "cuda": 512}
"""Tokens of a forward up to which "auto" stacks, by type of device; none on others.

cpu: measured on one core, LoRA on Llamas of 256 and 512 units: a stacked step took 0.6 to 0.9
of the time of one apart up to here, and 1.0 to 1.3 of it from twice as many tokens on. cuda:
a guess, not measured: about where reading bf16 weights takes as long as multiplying by them."""
ENOUGH_SHARED = 0.5
"""Share of common layers from which on "auto" prefers sharing them to stacking."""


class Probing:
    """Runs the probes of one micro-batch, the cheapest way that gives the same losses.

    Apart: two forwards. Where only upper layers are perturbed, the second one spares the
    layers below, bit for bit (`zopeft.engine.sharing`). Stacked: one forward over the batch
    repeated twice (`zopeft.engine.stacked`), the same losses but for rounding; activations
    take twice the memory. It needs a closure with ``stacked``, such as
    `zopeft.methods.batch_loss.BatchLoss`. (8-bit layers of bitsandbytes choose the input
    columns that they do not quantise by the whole batch, so over them the losses may differ
    by as much as this quantisation does.)

    "auto" stacks a batch of at most `most_tokens` tokens, unless half of the layers or more
    are shared. That is a rule and no measurement, so that a run can be repeated and resumed
    bit for bit; the number is saved with the run's state.

    Args:
        engine: The engine over the blocks to train.
        probes: "auto", "stacked" wherever the closure allows it, or "separate".

    Raises:
        InputError: `probes` is unknown, or "stacked" for blocks that cannot be stacked.
    """

    def __init__(self, engine: Engine, probes: str = "auto") -> None:
        if probes not in PROBES:
            raise input_error("probes", "unknown way of probing", probes, f"use one of {PROBES}")
        if probes == "stacked" and engine.unstackable:
            raise input_error(
                "probes", f"cannot be stacked: {engine.unstackable}", probes, "use auto"
            )
        self.engine, self.probes = engine, probes
        device = engine.blocks[0].parameter.device
        self.most_tokens = MOST_TOKENS.get(device.type, 0)
        self.sharing = shared_layers(engine.blocks)
        self._refused = bool(engine.unstackable)

    def pair(self, direction: Direction, eps: float, closure: Any) -> tuple[Tensor, int]:
        """Runs the probes at +eps and -eps.

        Args:
            direction: The step's direction.
            eps: Finite-difference step, > 0.
            closure: Returns the loss of the batch, the same batch at every call.

        Returns:
            fp32 [2], loss_plus and loss_minus; and the number of forward passes, a stacked
            one counting as two.
        """
        if self.stacks(closure):
            try:
                with self.engine.stacked(direction, (eps, -eps)):
                    return closure.stacked(2).detach().float(), 2
            except UnstackableError as error:
                self._refused = error.always
                logger.info("probes run apart: %s", error)
        return self._apart(direction, eps, closure)

    def stacks(self, closure: Any) -> bool:
        """Whether a closure's probes are to be stacked."""
        if self.probes == "separate" or self._refused or not hasattr(closure, "stacked"):
            return False
        if self.probes == "stacked":
            return True
        if self.sharing is not None and self.sharing.share >= ENOUGH_SHARED:
            return False
        return 0 < int(getattr(closure, "tokens", 0)) <= self.most_tokens

    def _apart(
        self, direction: Direction, eps: float, closure: Callable[[], Tensor]
    ) -> tuple[Tensor, int]:
        sharing, losses, count = self.sharing, [], 0
        if sharing is not None and sharing.compiled:
            sharing = None
        try:
            for sign in (1.0, -1.0):
                for _ in range(2):
                    if sharing is None:
                        work: Any = nullcontext()
                    else:
                        work = sharing.recording() if sign > 0 else sharing.reusing()
                    with work, self.engine.perturbed(direction, sign * eps):
                        loss = closure()
                    count += 1
                    if not self.engine.settle():
                        break
                losses.append(loss.detach().float())
        finally:
            if sharing is not None:
                sharing.forget()
        return torch.stack(losses), count

    def state_dict(self) -> dict[str, Any]:
        """Returns what later steps must be probed by, to have the same bits."""
        return {"probes": self.probes, "most_tokens": self.most_tokens}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes what `state_dict` gave; None, of a run before there was a choice: apart."""
        state = {"probes": "separate", "most_tokens": 0} if state is None else state
        self.probes, self.most_tokens = state["probes"], state["most_tokens"]
