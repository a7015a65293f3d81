"""The lr-free objective: scales from each block's signal, energy and curvature.

With ``u_i = scale_i z_i`` and the best lr, the expected fall of the loss in one step is
``A^2 / (2 G h)`` with ``A = sum scale_i^2 S_i``, ``G = sum scale_i^2 E_i`` and ``h = sum
scale_i^2 h_i``. Its logarithm, ``J = 2 log A - log G - log h``, does not depend on the lr
nor on the size of the scales. One mirror-ascent step from all scales one gives
``scale_i^2 proportional to S_i^2 / (E_i h_i)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zopeft.finetuner.seen import SIGNAL_FLOOR


def objective(scales: Tensor, signal: Tensor, energy: Tensor, curvature: Tensor) -> Tensor:
    """Returns ``J = 2 log sum s^2 S - log sum s^2 E - log sum s^2 h``, 0-dim.

    With leading dimensions, the same in all, one J for each of them.

    Args:
        scales: [..., N], positive.
        signal: S, [..., N].
        energy: E, [..., N].
        curvature: h, [..., N].
    """
    square = scales.square()
    gain = (square * signal).sum(-1).log()
    return 2.0 * gain - (square * energy).sum(-1).log() - (square * curvature).sum(-1).log()


def closed_form(
    signal: Tensor, energy: Tensor, curvature: Tensor, rms: Tensor, rule: str = "signal"
) -> Tensor:
    """Returns the scales that S, E and h ask for, up to a common factor.

    ``signal``: ``s^2 = S^2 / (E h)``; ``signal_twice``: its square (two mirror steps);
    ``signal_rms``: times the mean square of the block's weights, a factor that was found
    by experiment and has no derivation; ``none``: all scales one.

    Args:
        signal: S, float64 [N]; floored at `SIGNAL_FLOOR` of the energy.
        energy: E, float64 [N].
        curvature: h, float64 [N].
        rms: Root mean square of each block's weights, [N]; a block of zeros (LoRA B at
            its start) counts with the median of the others.
        rule: One of `zopeft.meta.options.RULES`.

    Returns:
        float64 [N], positive, with mean square one over blocks.
    """
    if rule == "none":
        return torch.ones_like(energy)
    tiny = torch.finfo(torch.float64).tiny
    energy = energy.clamp(min=float(energy.max()) * 1e-12 + tiny)
    curvature = curvature.clamp(min=float(curvature.max()) * 1e-12 + tiny)
    signal = torch.maximum(signal, SIGNAL_FLOOR * energy)
    square = signal.square() / (energy * curvature)
    if rule == "signal_twice":
        square = square.square()
    elif rule == "signal_rms":
        positive = rms[rms > 0]
        filled = torch.where(rms > 0, rms, positive.median() if len(positive) else rms + 1.0)
        square = square * filled.double().square()
    return (square / square.mean()).sqrt()


def best_lr(scales: Tensor, signal: Tensor, energy: Tensor, curvature: Tensor) -> float:
    """Returns ``A / (G h)``, the lr at which one expected step falls furthest.

    Args:
        scales: Scales in use, [N].
        signal: S, [N].
        energy: E, [N].
        curvature: h, [N].
    """
    square = scales.double().square()
    gain = (square * torch.maximum(signal, SIGNAL_FLOOR * energy)).sum()
    return float(gain / ((square * energy).sum() * (square * curvature).sum()))
