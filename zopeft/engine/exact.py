"""Norms in 16 bits that are probed exactly: their vectors take a step in fp32.

A norm's weight is often near one or far above it, where numbers of 16 bits lie many steps
apart; rounded, it would seldom be moved, and then by far too much. Most norms multiply in
fp32 and round the product once, so an fp32 weight gives the same numbers with no rounding of
its own: what is left is the rounding of the products, token by token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.noise import Noise

TOKENS = 8
"""Inputs on which both ways are compared."""


class ExactVectors:
    """Which modules give the same numbers, bit for bit, whether their vectors are fp32 or not.

    Each is tried once for those of its vectors that are moved and for a dtype of its input, on
    inputs that depend on nothing but its width, so that a run that is resumed finds what the
    first one found.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], torch.dtype | None] = {}

    def output(
        self, module: nn.Module, leaves: Sequence[str], forward: Callable[..., Any], inputs: Any
    ) -> torch.dtype | None:
        """Returns the dtype that a module's output must have; None where vectors are rounded.

        Args:
            module: The module, with its own weights in place.
            leaves: Names of its trained tensors.
            forward: Its own forward.
            inputs: What it is about to be given.
        """
        if torch.compiler.is_compiling() or not isinstance(inputs, Tensor):
            return None
        cast = torch.is_autocast_enabled(inputs.device.type)
        key = (module, *leaves, inputs.dtype, cast)
        if key not in self._found:
            with torch.no_grad():
                self._found[key] = _same(module, leaves, forward, inputs)
        return self._found[key]


def _same(
    module: nn.Module, leaves: Sequence[str], forward: Callable[..., Any], inputs: Tensor
) -> torch.dtype | None:
    own = {leaf: module._parameters[leaf] for leaf in leaves}
    vectors = [p for p in own.values() if p is not None and p.ndim == 1 and p.element_size() == 2]
    if len(vectors) < len(own) or inputs.ndim < 2 or not inputs.is_floating_point():
        return None
    width = inputs.shape[-1]
    noise = Noise().at_elements(0, 0, 0, TOKENS * width, inputs.device)
    tokens = noise.view(*[1] * (inputs.ndim - 2), TOKENS, width).to(inputs.dtype)
    try:
        with warnings.catch_warnings():
            # PyTorch says once that its fused kernel does not take both dtypes.
            warnings.simplefilter("ignore")
            stored, exact = _both(own, module, forward, tokens)
    except (RuntimeError, TypeError, ValueError):
        # A layer that takes weights of its input's dtype alone, or another kind of input.
        return None
    if not isinstance(stored, Tensor) or not isinstance(exact, Tensor):
        return None
    return stored.dtype if torch.equal(stored, exact.to(stored.dtype)) else None


def _both(
    own: Mapping[str, nn.Parameter | None],
    module: nn.Module,
    forward: Callable[..., Any],
    tokens: Tensor,
) -> tuple[Any, Any]:
    """Returns what a module makes of its own vectors, and of the same ones in fp32."""
    stored = forward(tokens)
    try:
        for leaf, vector in own.items():
            assert vector is not None
            module._parameters[leaf] = vector.detach().float()  # type: ignore[assignment]
        return stored, forward(tokens)
    finally:
        module._parameters.update(own)
