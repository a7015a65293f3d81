"""The settings of meta-training, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from zopeft.errors import InputError, close_matches, input_error
from zopeft.meta.options import STATE_CHOICES, MetaOptions, rows
from zopeft.optim.declared import made, option

MIN_STEPS = 8
"""Half of them gather the bases, and the statistics need two gradients in each of two halves."""

NEED_BACKWARD: dict[str, Any] = {
    "objective": "signal",
    "policy": "constant",
    "mask": 0.0,
    "momentum": 0.0,
}
"""What forward passes alone can do nothing but this of."""


@dataclass(frozen=True)
class MetaSettings(MetaOptions):
    """The settings of one meta-training: `MetaOptions`, and what a recipe says elsewhere.

    Raises:
        InputError: By `of`: a setting is unknown, out of range or in conflict with another.
    """

    token_rows: str = rows()
    noise: str = option("gaussian", "name of the noise (`zopeft.noise.NOISES`)", registry="noise")
    noise_rank: int = option(4, "rank of low_rank noise", least=1, most=64)
    seed: int = option(0, "seed of directions, batches and the PertNNs' start")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_capacity()
        self._check_policy()
        self._check_gradients()

    def _check_capacity(self) -> None:
        for name, plain in (("capacity", "scales"), ("token_rows", "none")):
            value = getattr(self, name)
            if self.objective == "paper" and value not in (plain, "auto"):
                do = "use the objective signal"
                raise input_error(f"meta.{name}", "the paper's objective has none", value, do)
        if self.capacity != "subspace":
            return
        if self.sharing != "block":
            do = "share by block"
            raise input_error("meta.capacity", "a subspace belongs to one block", self.sharing, do)
        if self.policy != "constant":
            do = "use the policy constant, or learn scales alone"
            raise input_error("meta.capacity", "a subspace has constant scales", self.policy, do)
        if self.steps < MIN_STEPS:
            raise input_error(
                "meta.steps", f"must be at least {MIN_STEPS} for a subspace", self.steps
            )

    def _check_policy(self) -> None:
        if self.policy == "constant":
            return
        if self.objective != "signal":
            do = "set meta.objective to signal"
            raise input_error("meta.policy", "state needs the signal objective", self.objective, do)
        if self.run_length < 2 * self.windows:
            raise input_error(
                "meta.windows",
                f"a run of {self.run_length} steps has not two steps for each window",
                self.windows,
                "take fewer, or raise meta.steps and meta.reset_every",
            )
        if not self.features:
            raise input_error(
                "meta.features", "none given", do="known: " + ", ".join(STATE_CHOICES)
            )

    def _check_gradients(self) -> None:
        if self.gradients == "backward":
            return
        for name, plain in NEED_BACKWARD.items():
            value = getattr(self, name)
            if value != plain:
                do = f"leave it at {plain}, or set meta.gradients to backward"
                what = "needs backward passes, and gradients is forward"
                raise input_error(f"meta.{name}", what, value, do)
        if self.rank != MetaOptions.rank:
            do = "set meta.input_rank"
            raise input_error(
                "meta.rank", "is of both sides, and gradients is forward", self.rank, do
            )

    def decided(self, space: str) -> MetaSettings:
        """Returns the settings with "auto" replaced by what it stands for.

        Args:
            space: The space of the blocks, ``full``, ``adapter`` or another.
        """
        signal = self.objective == "signal"
        can = signal and space == "full" and self.sharing == "block"
        can = can and self.policy == "constant" and self.steps >= MIN_STEPS
        capacity, rows = self.capacity, self.token_rows
        return replace(
            self,
            capacity=("subspace" if can else "scales") if capacity == "auto" else capacity,
            token_rows=("frequency" if signal else "none") if rows == "auto" else rows,
        )

    @property
    def directions(self) -> int:
        """Directions of a subspace, at most."""
        return self.rank if self.gradients == "backward" else self.input_rank

    @property
    def run_length(self) -> int:
        """Steps of a run from the base model."""
        return min(self.steps, self.reset_every or self.steps)

    @classmethod
    def of(cls, **settings: Any) -> MetaSettings:
        """Makes settings from keywords.

        Raises:
            InputError: A keyword is unknown (close matches are offered), a value is out of
                range, or two do not go together.
        """
        known = [f.name for f in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            hints = "; ".join(f"{name!r}: {close_matches(name, known)}" for name in unknown)
            raise InputError(f"meta_train: unknown setting; {hints}")
        if "features" in settings:
            settings["features"] = tuple(settings["features"])
        return made("meta.", cls, settings)
