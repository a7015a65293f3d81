"""A method's state: saved, loaded, and made again from the records of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zopeft.errors import input_error
from zopeft.noise import step_seed
from zopeft.optim.rate import RunningRate
from zopeft.optim.record import StepRecord
from zopeft.optim.shown_rate import ShownRate

if TYPE_CHECKING:
    from zopeft.blocks import Blocks
    from zopeft.engine import Engine
    from zopeft.optim.clipping import RunningClip
    from zopeft.optim.estimator import Estimator
    from zopeft.optim.rounds import Rounds
    from zopeft.optim.state import State
    from zopeft.probing.probing import Probing


NEAREST = "nearest"
"""How 16-bit probes were rounded by runs before there was a choice, and stay rounded."""


class Restorable(torch.optim.Optimizer):
    """What `ZerothOrder` needs to go on from a saved state, or from a journal."""

    blocks: Blocks
    engine: Engine
    probing: Probing
    estimator: Estimator
    clip: RunningClip
    rate: RunningRate | None
    shown: ShownRate
    guarded: bool
    options: dict[str, Any]
    auto: bool
    single: bool
    weight_decay: float
    seed: int
    steps: int
    skipped: int
    forward_passes: int
    lr_reason: str
    _bad_in_a_row: int
    kept: State
    _pending: Rounds | None

    def recall(self, record: StepRecord) -> Tensor:
        """Takes a recorded step in place of an estimate; ``apply`` then repeats it bit for bit.

        Args:
            record: The record of the step that is due.

        Returns:
            0-dim fp32, the mean of the recorded losses.

        Raises:
            InputError: The record is of another step, or of a run with another seed or
                number of directions.
        """
        seed = step_seed(self.seed, self.steps)
        if (record.step, record.seed) != (self.steps, seed):
            raise input_error(
                "journal",
                f"step {self.steps} of this run has another address than the record's",
                f"step {record.step}, seed {record.seed}",
                "use the journal of this run",
            )
        if not self.single and len(record.projected_grads) != self.estimator.directions:
            raise input_error(
                "journal",
                f"this run has {self.estimator.directions} directions a step",
                len(record.projected_grads),
                "use the journal of this run",
            )
        if record.decay != self.weight_decay:
            raise input_error(
                "journal",
                f"step {record.step} was made with weight decay {record.decay}, not with",
                self.weight_decay,
                "give the optimizer that of the run",
            )
        scales = None
        if record.scales is not None:
            scales = torch.tensor(record.scales, device=self.engine.device)
        self.engine.adopt()
        self._pending = self._begin(record.seed, scales, record)
        if self.auto and self.rate is None:
            self._set_lr(record.lr[0])
            self.auto, self.lr_reason = False, "as in the journal"
        self._show_rate(record.losses, record.centre, record.eps)
        return torch.tensor(record.loss, dtype=torch.float32)

    def _begin(self, seed: int, scales: Tensor | None, record: StepRecord) -> Rounds:
        raise NotImplementedError

    def begin_rate(self, start: dict[str, float] | None, lr: float) -> None:
        """Takes up the learning rate of a run that began elsewhere.

        Args:
            start: What ``rate.start`` was there; None where the rate was not a running one.
            lr: The learning rate that the run began with.
        """
        self.rate = None if start is None else RunningRate(**start, estimator=self.estimator)
        self._set_lr(lr)
        self.auto, self.lr_reason = False, "as in the journal"

    def _differences(
        self, losses: Sequence[float], centre: float | None, eps: float
    ) -> list[float] | None:
        """Returns the ``g_k`` [K] of a step; None of a bad one, whose losses are not finite.

        What counts are the losses that the update needs: one-sided, also that at the weights.
        """
        needed = losses if centre is None or not self.estimator.one_sided else (*losses, centre)
        if not all(map(math.isfinite, needed)):
            return None
        return self.estimator.differences(losses, centre, eps)

    def _show_rate(self, losses: Sequence[float], centre: float | None, eps: float) -> None:
        """Has the param groups tell the rate of a step with these losses."""
        if self.rate is None:
            return
        raw = self._differences(losses, centre, eps)
        factor = self.rate.factor
        if raw is not None and self.estimator.normalise:
            factor = self.rate.factor_at(self.estimator.spread(raw))
        self.shown.show(self.param_groups, factor)

    @property
    def scheduled(self) -> bool:
        """Whether a schedule that `zopeft.optim.shown_rate.guard` was not told of is at work.

        Between two steps it must find the rate that it multiplies.
        """
        return not self.guarded and "initial_lr" in self.param_groups[0]

    def _set_lr(self, lr: float) -> None:
        self.shown.hide(self.param_groups)
        for group in self.param_groups:
            group["lr"] = lr
            if "initial_lr" in group:
                group["initial_lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Returns step counters and the method's own state; never noise."""
        own = {
            "steps": self.steps,
            "skipped": self.skipped,
            "bad_in_a_row": self._bad_in_a_row,
            "forward_passes": self.forward_passes,
            "auto": self.auto,
            "rate": None if self.rate is None else self.rate.state_dict(),
            "lr_reason": self.lr_reason,
            "engine": self.engine.state_dict(),
            "rounding": self.engine.rounding,
            "clip": self.clip.state_dict(),
            "probing": self.probing.state_dict(),
            "watched": self.engine.reads.state(),
            "kept": self.kept.state_dict(),
            **self._own_state(),
        }
        with self.shown.hidden(self.param_groups) as showing:
            own["shown"] = self.shown.state_dict() | {"showing": showing}
            return {**super().state_dict(), "zopeft": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; weights must have been loaded already."""
        state = dict(state_dict)
        own = dict(state.pop("zopeft"))
        super().load_state_dict(state)
        self.steps, self.skipped = own.pop("steps"), own.pop("skipped")
        self._bad_in_a_row = own.pop("bad_in_a_row")
        self.forward_passes = own.pop("forward_passes")
        self.auto, self.lr_reason = own.pop("auto"), own.pop("lr_reason")
        rate = own.pop("rate", None)
        self.rate = None if rate is None else RunningRate.from_state(rate, self.estimator)
        usual = 1.0 if self.rate is None else self.rate.factor
        # Checkpoints of before groups told the rate hold it as they do now, without the factor.
        shown = own.pop("shown", {"factor": usual, "showing": not self.scheduled})
        self.shown = ShownRate.from_state(shown, self.param_groups)
        self.engine.adopt()
        self.engine.load_state_dict(own.pop("engine"))
        self.engine.rounding = own.pop("rounding", NEAREST)
        self.clip.load_state_dict(own.pop("clip"))
        self.probing.load_state_dict(own.pop("probing", None))
        self.engine.reads.load(own.pop("watched", None))
        self.kept.load_state_dict(own.pop("kept", {}))
        self._load_own_state(own)

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        pass
