"""How many layers and experts a configuration claims: refused where no model has as many.

A model is built layer by layer before its weights are read, so that a claim of billions would
keep a machine busy until its memory is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zopeft.errors import input_error

MOST_LAYERS = 2048
"""The deepest published models have a few hundred."""
MOST_EXPERTS = 8192
MOST = {"layer": MOST_LAYERS, "layers": MOST_LAYERS, "experts": MOST_EXPERTS}
"""The last word of a setting's name to the greatest number that is read."""
MOST_OF_GGUF = {"block_count": MOST_LAYERS, "expert_count": MOST_EXPERTS}
"""The last part of a setting's name in GGUF."""


def check_counts(config: Mapping[str, Any], where: str) -> None:
    """Checks the layers and experts of a configuration, as it stands in its file.

    Args:
        config: The configuration, or the settings of a file of GGUF; those of a model's parts are
            objects in it.
        where: The file, for the message.

    Raises:
        InputError: It claims more than anyone has made.
    """
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, Mapping):
                waiting.append(value)
            most = MOST.get(str(name).rpartition("_")[2])
            most = most or MOST_OF_GGUF.get(str(name).rpartition(".")[2])
            if most and isinstance(value, int | float) and value > most:
                do = "correct it; no model has as many"
                raise input_error(where, f"{name} must be at most {most}", value, do)
