"""The dominant layer: the first from which single activations stand out of all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zopeft.blocks.survey import Survey
from zopeft.errors import input_error

NEAR = 0.5
"""Part of the largest prominence from which on a layer's activations count as standing out."""


def dominant_layer(
    model: nn.Module,
    closure: Callable[[], Any],
    among: Sequence[int],
    agree: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Returns the first layer whose output stands out half as much as that of any, or more.

    A layer's prominence is its output's largest absolute value over the median one. Large models
    have few activations that are a thousand times the others, from one of their first layers on.

    Args:
        model: The model.
        closure: Runs a batch, at the weights themselves.
        among: The layers that may be returned.
        agree: Makes the prominence that one process has seen that of all; None for one process.

    Raises:
        InputError: The layers' outputs cannot be seen.
    """
    layers = Survey(model).layers
    found = torch.zeros(0 if layers is None else len(layers))

    def watch(number: int) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).detach().float().abs()
            size = float(hidden.max() / hidden.median().clamp(min=torch.finfo(torch.float32).tiny))
            found[number] = max(float(found[number]), size)

        return look

    hooks = [layer.register_forward_hook(watch(n)) for n, layer in enumerate(layers or ())]
    try:
        closure()
    finally:
        for hook in hooks:
            hook.remove()
    if agree is not None:
        found = agree(found)
    if not len(found) or not bool(found[list(among)].any()):
        do = "use layers last or cyclic"
        raise input_error("layers", "no layer's output could be seen", "dominant", do)
    most = float(found[list(among)].max())
    return next(layer for layer in among if float(found[layer]) >= NEAR * most)
