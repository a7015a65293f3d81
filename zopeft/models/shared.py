"""Updates of all layers from something that they share: a bank, a vector, a random basis."""

from __future__ import annotations

from zopeft.models.tuner import Tuner

vblora = Tuner(
    "vblora",
    "VBLoRAConfig",
    "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks (2024, arXiv:2405.15179)",
    {"r": 4},
    fit=lambda sizes: {"vector_length": sizes.divisor(256)},
)

unilora = Tuner(
    "unilora",
    "UniLoraConfig",
    "Uni-LoRA: One Vector is All You Need (2025, arXiv:2506.00799)",
    {"r": 4},
    packed=(),
)
"""Both factors of every update are read from one vector, so PEFT starts it at small random
numbers: at zero nothing would have an effect alone."""

tinylora = Tuner(
    "tinylora",
    "TinyLoraConfig",
    "TinyLoRA: Learning to Reason in 13 Parameters (2026, arXiv:2602.04118)",
    {"r": 2, "u": 64},
    packed=(),
)

randlora = Tuner(
    "randlora",
    "RandLoraConfig",
    "RandLoRA: Full-rank parameter-efficient fine-tuning of large models (2025, arXiv:2502.00987)",
    fit=lambda sizes: {"r": min(32, sizes.least), "randlora_alpha": 20 * min(32, sizes.least)},
)

frod = Tuner(
    "frod",
    "FrodConfig",
    "FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees (2026, "
    "doi:10.1609/aaai.v40i31.39813)",
    {"progressbar": False},
    packed=(),
)
