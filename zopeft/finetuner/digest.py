"""A digest of everything about a fine-tuner that a step depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from zopeft.finetuner.config import FineTunerConfig

if TYPE_CHECKING:
    from zopeft.finetuner.artifact import FineTuner

VERSION = 2
"""The first one, which is told without a number, knew networks, bases, mix and rows alone."""
ASIDE = ("base_model", "architecture", "space", "training", "versions", "format_version")
"""Fields of the configuration that say where a fine-tuner comes from, and enter no step."""


def digest_of(finetuner: FineTuner | None, version: int = VERSION) -> str:
    """Returns a text that differs for fine-tuners that give other scales or directions.

    Of the configuration all fields count but `ASIDE`, where they are not the default: so a field
    that is added with the default of before changes no digest.

    Args:
        finetuner: The fine-tuner; None for none.
        version: Which digest, 1 or 2.

    Returns:
        16 hex digits after the version, ``v2_0123456789abcdef``; "" for None. Of the first
        version, the digits alone.
    """
    if finetuner is None:
        return ""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(finetuner.nets.state_dict().items()):
        found.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    config = finetuner.config
    if version > 1:
        found.update(json.dumps(_told(config), sort_keys=True).encode())
    elif config.rows != "none":
        found.update(f"rows {config.rows} {config.power}".encode())
    for index, basis in sorted(finetuner.bases.items()):
        found.update(f"basis {index} {config.mix}".encode())
        for side in basis.sides.values():
            found.update(side.view(torch.int16).numpy().tobytes())
    return found.hexdigest() if version == 1 else f"v{version}_{found.hexdigest()}"


def digest_like(finetuner: FineTuner | None, other: str) -> str:
    """Returns the digest to compare with one that was written earlier, in its own version."""
    first = bool(other) and not other.startswith("v")
    return digest_of(finetuner, 1 if first else VERSION)


def _told(config: FineTunerConfig) -> dict[str, Any]:
    usual = FineTunerConfig(groups=config.groups[:1])
    told = {one.name: getattr(config, one.name) for one in fields(config) if one.name not in ASIDE}
    told = {name: value for name, value in told.items() if value != getattr(usual, name)}
    return {**told, "groups": [asdict(group) for group in config.groups]}
