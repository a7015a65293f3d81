"""A tuner: a PEFT type that goes on layers, told by its config, its defaults and its sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from zopeft.errors import input_error
from zopeft.models.options import build_config
from zopeft.models.targets import QUERY_VALUE, Families, as_config, has_conv1d
from zopeft.models.tuners import chosen_by_user, layers_for, wrap

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Sizes:
    """What the layers of an adapter have in common.

    Attributes:
        inputs: Numbers of inputs of the layers, without doubles.
        outputs: Numbers of outputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def least(self) -> int:
        """The smallest number of inputs or outputs."""
        return min(*self.inputs, *self.outputs)

    def divisor(self, most: int, of: str = "both", even: bool = False) -> int:
        """Returns the largest number up to `most` that divides all sizes.

        Args:
            most: The largest that is wanted.
            of: "inputs", "outputs" or "both".
            even: Whether it has to be even (1 where none is).
        """
        chosen = {"inputs": self.inputs, "outputs": self.outputs}.get(
            of, self.inputs + self.outputs
        )
        common = math.gcd(*chosen)
        found = [n for n in range(1, min(most, common) + 1) if common % n == 0]
        return next((n for n in reversed(found) if not (even and n % 2)), 1)


Fit = Callable[[Sizes], Mapping[str, Any]]


@dataclass(frozen=True)
class Tuner:
    """A PEFT type on layers: called with a model and options, it returns the ``PeftModel``.

    Attributes:
        name: zopeft's name of the type.
        config: Name of PEFT's config class.
        paper: Title, year, and where it is found.
        defaults: What zopeft sets; the other fields keep PEFT's defaults.
        families: The layers that it goes on.
        fit: Further defaults, from the sizes of those layers.
        packed: The dtypes of quantised weights beside which PEFT computes it rightly. Some types
            read the weights, and take the packed ones for numbers, or leave the adapter out.
    """

    name: str
    config: str
    paper: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    families: Families = QUERY_VALUE
    fit: Fit | None = None
    packed: tuple[str, ...] = ("int8", "uint8")

    def __call__(self, model: Any, **options: Any) -> PeftModel:
        """Puts the adapter on a model.

        Raises:
            InputError: The installed PEFT does not have the type, an option is unknown, or the
                type does not go with the model's layers.
        """
        kind = peft_config(self.name, self.config)
        defaults: dict[str, Any] = {"task_type": "CAUSAL_LM", **self.defaults}
        if chosen_by_user(options):
            layers = _named(model, options.get("targets", options.get("target_modules")))
        else:
            layers = layers_for(model, self.name, self.families)
            defaults["target_modules"] = as_config(model, layers)
        _check_packed(self, model, layers)
        if has_conv1d(model) and "fan_in_fan_out" in {one.name for one in fields(kind)}:
            defaults["fan_in_fan_out"] = True
        sizes = sizes_of(model, layers)
        if self.fit is not None and sizes is not None:
            defaults |= self.fit(sizes)
        return wrap(model, self.name, build_config(self.name, kind, defaults, options))


def peft_config(name: str, config: str) -> Any:
    """Returns a config class of PEFT.

    Raises:
        InputError: The installed version does not have it.
    """
    import peft

    found = getattr(peft, config, None)
    if found is None:
        what = f"peft {peft.__version__} does not have it"
        raise input_error(f"peft {name}", what, do="pip install -U peft, or take lora")
    return found


def _check_packed(tuner: Tuner, model: Any, layers: list[str]) -> None:
    """Refuses weights that are packed in a way that the type does not read."""
    modules = dict(model.named_modules())
    for name in layers:
        weight = getattr(modules[name], "weight", None)
        kind = "" if weight is None else str(weight.dtype).removeprefix("torch.")
        if weight is not None and not weight.is_floating_point() and kind not in tuner.packed:
            bits = {"int8": "8-bit", "uint8": "4-bit"}.get(kind, kind)
            what = f"PEFT does not have it for {bits} weights"
            raise input_error(f"peft {tuner.name}", what, do="use lora")


def sizes_of(model: Any, layers: list[str]) -> Sizes | None:
    """Returns the sizes of layers; None where one of them tells none."""
    modules = dict(model.named_modules())
    shapes = [_shape(modules[name]) for name in layers]
    known = [shape for shape in shapes if shape is not None]
    if not known or len(known) != len(shapes):
        return None
    return Sizes(*(tuple(dict.fromkeys(side)) for side in zip(*known, strict=True)))


def _shape(layer: Any) -> tuple[int, int] | None:
    """Returns the inputs and outputs of a layer; None where it is no linear one."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    if type(layer).__name__ == "Conv1D":
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    return None


def _named(model: Any, wanted: Any) -> list[str]:
    """Returns the layers that a user's ``target_modules`` names, as PEFT reads it."""
    names = [name for name, module in model.named_modules() if _shape(module) is not None]
    if wanted == "all-linear":
        return names
    if isinstance(wanted, str):
        return [name for name in names if re.fullmatch(wanted, name)]
    ends = tuple(f".{end}" for end in wanted)
    return [name for name in names if f".{name}".endswith(ends)]
