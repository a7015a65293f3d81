"""Rotations and reflections: updates that keep lengths or angles, on blocks of what a layer reads.

Block sizes are the largest that divide all layers, up to each type's own.
"""

from __future__ import annotations

from zopeft.models.tuner import Tuner

oft = Tuner(
    "oft",
    "OFTConfig",
    "Controlling Text-to-Image Diffusion by Orthogonal Finetuning (2023, arXiv:2306.07280)",
    fit=lambda sizes: {"oft_block_size": sizes.divisor(32, "inputs")},
)

boft = Tuner(
    "boft",
    "BOFTConfig",
    "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization (2023, "
    "arXiv:2311.06243)",
    fit=lambda sizes: {"boft_block_size": sizes.divisor(4, "inputs", even=True)},
)

hra = Tuner(
    "hra",
    "HRAConfig",
    "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection "
    "Adaptation (2024, arXiv:2405.17484)",
    {"r": 8},
    packed=(),
)
"""Reflections come in equal pairs at the start, which leave the weights as they were."""

road = Tuner(
    "road",
    "RoadConfig",
    "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and "
    "Composability (2024, arXiv:2409.00119)",
    fit=lambda sizes: {"group_size": sizes.divisor(64, "outputs", even=True)},
)

psoft = Tuner(
    "psoft",
    "PsoftConfig",
    "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation (2025, arXiv:2505.11235)",
    fit=lambda sizes: {"r": min(32, sizes.least), "psoft_alpha": min(32, sizes.least)},
    packed=(),
)
