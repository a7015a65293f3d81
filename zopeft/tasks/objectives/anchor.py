"""Anchor: what it costs a model to move away from the one below its adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from zopeft.blocks.offloaded import device_of
from zopeft.errors import input_error


class Anchor:
    """``weight`` times the divergence from the model without its adapter, a mean over tokens.

    ``KL(p || q)`` of the new tokens' distributions, by the estimate ``r - log r - 1`` with ``r =
    q(token) / p(token)``, which is never negative.

    Args:
        weight: What the divergence is multiplied by, above 0.

    References:
        Schulman, "Approximating KL Divergence", 2020: the estimate k3.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def check(self, model: Any) -> None:
        """Refuses models without an adapter that can be switched off.

        Raises:
            InputError: The model is one.
        """
        if not hasattr(model, "disable_adapter"):
            what = "is measured to the model below an adapter, and there is no adapter"
            raise input_error("objective.anchor", what, do="use --lora, or leave it out")

    def __call__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        made: Sequence[Sequence[int]],
        heard: Sequence[Sequence[float]],
        pad: int,
    ) -> float:
        """Returns the term of completions.

        Args:
            model: The model with its adapter.
            prompts: Their prompts.
            made: Their tokens.
            heard: Log-probability of each token where it was chosen.
            pad: The id that fills a batch.
        """
        texts = [[*prompt, *ids] for prompt, ids in zip(prompts, made, strict=True)]
        width = max(map(len, texts))
        device = device_of(model)
        ids = torch.tensor([[*t, *[pad] * (width - len(t))] for t in texts], device=device)
        mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts], device=device)
        with torch.no_grad(), model.disable_adapter():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        total, count = 0.0, 0
        for row, (prompt, own, logs) in enumerate(zip(prompts, made, heard, strict=True)):
            places = logits[row, len(prompt) - 1 : len(prompt) - 1 + len(own)].float()
            there = places.log_softmax(-1).gather(1, torch.tensor(own, device=device)[:, None])
            for below, here in zip(there[:, 0].tolist(), logs, strict=True):
                total += math.exp(min(below - here, 50.0)) - (below - here) - 1.0
                count += 1
        return self.weight * total / max(1, count)
