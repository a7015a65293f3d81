"""Federated tuning: clients look at points on their own data, and send losses and nothing else.

The server has the steps: it asks for the losses of a step's points, averages them, writes the step
and keeps the journal. A client is sent the steps that it has not made yet, as a journal holds them
(a seed and some numbers each), and makes them again without a forward pass; so one that joins late
is where all others are. Neither weights nor data are ever sent.

`Federation` and `Participant` know nothing of how messages travel; `zopeft.federated.flower` has
them go by Flower.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Answer": "zopeft.federated.asking",
    "Federation": "zopeft.federated.federation",
    "Participant": "zopeft.federated.participant",
    "Question": "zopeft.federated.asking",
    "LossStrategy": "zopeft.federated.flower",
    "client_app": "zopeft.federated.flower",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
