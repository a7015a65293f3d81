"""Options: the settings of a PEFT type, checked against its config class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zopeft.errors import close_matches, input_error

SHORT: dict[str, tuple[str, ...]] = {
    "rank": ("r",),
    "alpha": ("lora_alpha", "alpha", "psoft_alpha", "randlora_alpha"),
    "dropout": ("lora_dropout", "vera_dropout", "module_dropout"),
    "targets": ("target_modules",),
    "tokens": ("num_virtual_tokens", "adapter_len"),
}
"""Short names that every type understands, to the fields they may stand for."""


def build_config(
    name: str, config_class: type, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """Returns the PEFT config from a type's defaults and the user's options.

    Args:
        name: The type, for messages.
        config_class: A ``peft`` config class (a dataclass).
        defaults: What zopeft sets.
        options: What the user set; wins.

    Raises:
        InputError: Unknown options (all are named), or values that PEFT refuses.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    settings: dict[str, Any] = {}
    unknown = []
    for key, value in options.items():
        names = (key, *SHORT.get(key, ()))
        field = next((name for name in names if name in fields), None)
        if field is None:
            unknown.append(key)
        else:
            settings[field] = value
    if unknown:
        short = {key for key, names in SHORT.items() if fields.intersection(names)}
        raise input_error(
            f"peft {name}",
            "unknown option" + ("s" if len(unknown) > 1 else ""),
            ", ".join(unknown),
            close_matches(unknown[0], fields | short),
        )
    try:
        return config_class(**{**defaults, **settings})
    except (TypeError, ValueError) as error:
        raise input_error(f"peft {name}", str(error), do="check the options") from error
