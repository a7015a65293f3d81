"""Probing: how the forwards of an estimate are run, apart or as one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zopeft.blocks.activations import in_sixteen_bits, rounds_inputs
from zopeft.blocks.shards import how_sharded
from zopeft.engine import Engine
from zopeft.engine.carrier import UnstackableError
from zopeft.engine.direction import Probe
from zopeft.errors import input_error
from zopeft.probing.closure import Closure, StackedClosure, loss_of, stackable
from zopeft.probing.examples import begin_forward, end_forward
from zopeft.probing.packed import PADDED
from zopeft.probing.probe_noise import QUANTISED, SIXTEEN, ProbeNoise, measure_noise
from zopeft.probing.sharing import SharedLayers, shared_layers
from zopeft.probing.stacking import Stacking

logger = logging.getLogger(__name__)

SHARED_OUT = "the model is shared out among processes"
PROBES = ("auto", "stacked", "separate")
MOST_TOKENS = {"cpu": 128, "cuda": 512}
"""Tokens of a batch up to which "auto" stacks two probes, by type of device; none on others.

cpu: measured on one core, LoRA on Llamas of 256 and 512 units: a stacked step took 0.6 to 0.9
of the time of one apart up to here, and 1.0 to 1.3 of it from twice as many tokens on; full weights
in bf16, Gaussian noise drawn once for both: 0.86 and 0.96. cuda:
a guess, not measured: about where reading bf16 weights takes as long as multiplying by them."""
ENOUGH_SHARED = 0.5
"""Share of common layers from which on "auto" prefers sharing them to stacking."""
LONG = 400
"""Steps from which on the noise of 16 bit is measured: 17 forward passes are then 2 % of a run."""


class Probing:
    """Runs the probes of one micro-batch, the cheapest way that gives the same losses.

    Apart: a forward a probe. Where only upper layers are perturbed, all but the first spare
    the layers below, bit for bit (`zopeft.probing.sharing`). Stacked: one forward over the
    batch repeated once a probe (`zopeft.probing.stacking`), the same losses but for rounding;
    activations take as many times the memory. It needs a closure with ``stacked``, such as
    `zopeft.probing.batch_loss.BatchLoss`. (8-bit layers of bitsandbytes choose the input
    columns that they do not quantise by the whole batch, so over them the losses may differ
    by as much as this quantisation does.)

    "auto" stacks a batch of at most `most_tokens` tokens, unless half of the layers or more
    are shared. A forward then takes as many probes as fill twice that many tokens, which is
    two of the largest batch that is stacked; more probes are shared out evenly. That is a rule
    and no measurement, so that a run can be repeated and resumed bit for bit; the number is
    saved with the run's state.

    Args:
        engine: The engine over the blocks to train.
        probes: "auto", "stacked" wherever the closure allows it, or "separate".

    Attributes:
        layout: How the run's batches are laid out, for who makes its closures.
        twins_together: Whether layers may have weights of their own for each probe of a forward
            (`Carrier.twinned`); runs of earlier versions go on without.
        noise: What of the differences of losses is rounding; None where it was not measured.
        steps_planned: Steps that are to come, where that is known.
        groups_together: Whether groups of a batch (`zopeft.probing.groups`) share a forward.

    Raises:
        InputError: `probes` is unknown, or "stacked" for blocks that cannot be stacked.
    """

    def __init__(self, engine: Engine, probes: str = "auto") -> None:
        if probes not in PROBES:
            raise input_error("probes", "unknown way of probing", probes, f"use one of {PROBES}")
        self.engine, self.probes, self.stacking = engine, probes, Stacking(engine)
        # Where processes run the layers together, all must take the same forward passes.
        shared = SHARED_OUT if how_sharded(engine.blocks.model) else ""
        reason = engine.unstackable = self.stacking.unstackable or shared
        if probes == "stacked" and reason:
            raise input_error("probes", f"cannot be stacked: {reason}", probes, "use auto")
        device = engine.blocks[0].parameter.device
        self.most_tokens = MOST_TOKENS.get(device.type, 0)
        self.sharing = shared_layers(engine.blocks)
        self._sharings: dict[frozenset[int], SharedLayers | None] = {}
        self.layout = PADDED
        self._refused = bool(reason)
        self.twins_together = True
        self.groups_together = probes != "separate" and not self.stacking.ungroupable
        self.noise: ProbeNoise | None = None
        self.steps_planned = 0

    def run(self, probes: Sequence[Probe], closure: Closure) -> tuple[Tensor, int]:
        """Runs the probes of a step.

        Args:
            probes: Directions and steps, [P]; one with a step of zero comes first if at all.
            closure: Returns the loss of the batch, the same batch at every call.

        Returns:
            fp32 [P], the losses; and the number of forward passes, a stacked one counting as
            many times as it has copies of the batch.
        """
        together = stackable(closure) if self.stacks(closure, self._sharing_of(probes)) else None
        losses = [] if together is None else self._together(probes, together)
        stacked = len(losses)
        if stacked == len(probes):
            return torch.stack(losses), stacked
        apart, count = self.apart(probes[stacked:], closure)
        return torch.stack([*losses, *apart]), stacked + count

    @contextmanager
    def separately(self) -> Iterator[None]:
        """Runs each probe within in a forward of its own; later ones run as if there were none."""
        before, self._refused = self._refused, True
        try:
            yield
        finally:
            self._refused = before

    def _together(self, probes: Sequence[Probe], closure: StackedClosure) -> list[Tensor]:
        """Runs probes in as few forwards as may be; returns the losses of those that ran so."""
        losses: list[Tensor] = []
        for part in self._parts(probes, closure):
            try:
                begin_forward()
                with self.stacking.shown(part):
                    found = closure.stacked(len(part)).detach().float()
                end_forward(found)
                losses += found
            except UnstackableError as error:
                self._refused = error.always
                logger.info("probes run apart: %s", error)
                break
        return losses

    def look_for_noise(
        self, closure: Closure, scales: Tensor | None, eps: float, seed: int, one_sided: bool
    ) -> int:
        """Measures what of the probes is rounding, and tells the user where it is much.

        To be called once, before the first step. Over a base that does not round activations
        it does nothing, but in 16 bit where `LONG` steps or more are planned; see
        `zopeft.probing.probe_noise.measure_noise` for the arguments.

        Returns:
            The number of forward passes.
        """
        cause = QUANTISED
        if not rounds_inputs(self.engine.blocks.model):
            if self.steps_planned < LONG or not in_sixteen_bits(self.engine.blocks.model):
                return 0
            cause = SIXTEEN
        self.noise = measure_noise(self.engine, closure, scales, eps, seed, one_sided, cause)
        if self.noise.line():
            logger.warning("%s", self.noise.line())
        return self.noise.forward_passes

    def _sharing_of(self, probes: Sequence[Probe]) -> SharedLayers | None:
        """Returns the layers below all that some probes perturb."""
        count = len(self.engine.blocks)
        vectors = {id(vector): vector for vector, step in probes if step}.values()
        touched = frozenset(n for n in range(count) if any(v.touches(n) for v in vectors))
        if len(touched) in (0, count):
            return self.sharing
        if touched not in self._sharings:
            self._sharings[touched] = shared_layers(self.engine.blocks, touched)
        return self._sharings[touched]

    def _parts(self, probes: Sequence[Probe], closure: StackedClosure) -> list[Sequence[Probe]]:
        """Shares the probes out to forwards, about as many to each."""
        most = len(probes)
        if self.probes != "stacked":
            most = 2 * self.most_tokens // int(closure.tokens)
        count = -(-len(probes) // most)
        cuts = [round(part * len(probes) / count) for part in range(count + 1)]
        return [probes[first:last] for first, last in pairwise(cuts)]

    def stacks(self, closure: Closure, sharing: SharedLayers | None = None) -> bool:
        """Whether a closure's probes are to be stacked.

        Args:
            closure: The closure.
            sharing: The layers that the probes could share; None for those of all blocks.
        """
        sharing = sharing or self.sharing
        if self.probes == "separate" or self._refused or not hasattr(closure, "stacked"):
            return False
        if not self.twins_together and self.stacking.twinned:
            return False
        if self.probes == "stacked":
            return True
        if sharing is not None and sharing.share >= ENOUGH_SHARED:
            return False
        return 0 < int(getattr(closure, "tokens", 0)) <= self.most_tokens

    def apart(self, probes: Sequence[Probe], closure: Closure) -> tuple[list[Tensor], int]:
        """Runs each probe in a forward of its own; see `run`."""
        sharing, count = self._sharing_of(probes), 0
        losses: list[Tensor] = []
        if sharing is not None and (sharing.compiled or self.engine.reads.compiled):
            sharing = None
        try:
            for direction, step in probes:
                for _ in range(2):
                    work: Any = nullcontext()
                    if sharing is not None:
                        work = sharing.reusing() if losses else sharing.recording()
                    shown: Any = self.engine.perturbed(direction, step) if step else nullcontext()
                    with work, shown:
                        loss = loss_of(closure)
                    count += 1
                    if not step or not self.engine.settle():
                        break
                losses.append(loss)
        finally:
            if sharing is not None:
                sharing.forget()
        return losses, count

    def state_dict(self) -> dict[str, Any]:
        """Returns what later steps must be probed by, to have the same bits."""
        return {
            "probes": self.probes,
            "most_tokens": self.most_tokens,
            "layout": self.layout,
            "twins_together": self.twins_together,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Takes what `state_dict` gave; None, of a run before there was a choice: apart."""
        state = {"probes": "separate", "most_tokens": 0} if state is None else state
        self.probes, self.most_tokens = state["probes"], state["most_tokens"]
        self.layout = state.get("layout", PADDED)
        self.twins_together = state.get("twins_together", False)
