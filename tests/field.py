"""What the methods of the registry must be given beside their defaults."""

from __future__ import annotations

import torch

import zopeft
from zopeft.methods import METHODS

ENTRIES = [name for name in METHODS if METHODS[name].order == 0]
FIELD = [name for name in ENTRIES if "full" in METHODS[name].spaces]
"""Those that can serve a plain model."""


def extras(name, blocks):
    """What a method cannot do without."""
    found = {}
    if METHODS[name].needs_finetuner:
        found["finetuner"] = zopeft.FineTuner.initial(blocks, seed=1)
    if "mask" in METHODS[name].required:
        # Two of three weights, of every block.
        places = {b.name: torch.arange(b.numel)[torch.arange(b.numel) % 3 > 0] for b in blocks}
        found["mask"] = zopeft.Mask(places)
    return found
