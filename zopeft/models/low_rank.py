"""Low-rank updates of a weight beyond LoRA: entry by entry, in blocks, normalised, shared.

Ranks are 8, as LoRA's, except where a type is known by another; dropout is zero everywhere, so
that a probe sees the same function twice.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from zopeft.errors import input_error
from zopeft.models.tuner import Tuner

loha = Tuner(
    "loha",
    "LoHaConfig",
    "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning (2021), "
    "equation 2",
    {"r": 8, "alpha": 16},
    packed=("int8",),
)

lokr = Tuner(
    "lokr",
    "LoKrConfig",
    "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (2023), "
    "section 3",
    {"r": 8, "alpha": 16},
    packed=("int8",),
)

pvera = Tuner(
    "pvera",
    "PveraConfig",
    "PVeRA: Probabilistic Vector-Based Random Matrix Adaptation (2025, arXiv:2512.07703)",
    {"r": 256},
)
"""Probes and what is saved use the mean; PEFT samples in training mode, which no probe is in."""

hira = Tuner(
    "hira",
    "HiraConfig",
    "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models (2025)",
    fit=lambda sizes: {"r": min(32, sizes.least)},
)

glora = Tuner(
    "glora",
    "GloraConfig",
    "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning (2023, arXiv:2306.07967)",
    {"r": 8},
    packed=(),
)

gralora = Tuner(
    "gralora",
    "GraloraConfig",
    "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning (2025)",
    {"r": 8, "alpha": 16},
    fit=lambda sizes: {"gralora_k": sizes.divisor(2)},
)

delora = Tuner(
    "delora",
    "DeloraConfig",
    "Decoupling Angles and Strength in Low-rank Adaptation (2025, arXiv:2503.18225)",
    {"r": 8, "init_weights": False, "delora_lambda": 0.01},
    packed=(),
)
"""``W + (lambda / r) sum_i b_i a_i / (|b_i| |a_i|)``. PEFT's start is b = 0 beside lambda 15,
where the least step in any direction already has the full strength: both probes then see a
broken model. Here b is random and lambda 0.01, a change of the weights by less than 1 %."""

deft = Tuner(
    "deft",
    "DeftConfig",
    "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models (2025)",
    {"r": 8},
    packed=(),
)

miss = Tuner(
    "miss",
    "MissConfig",
    "MiSS: Matrix Shard Sharing (2024, arXiv:2409.15371)",
    {"r": 8},
)

lily = Tuner(
    "lily",
    "LilyConfig",
    "Low-Rank Interconnected Adaptation across Layers (2024, arXiv:2407.09946)",
    {"r": 8},
)
"""PEFT cannot merge it into the weights: it stays an adapter."""

peanut = Tuner(
    "peanut",
    "PeanutConfig",
    "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers (2024, "
    "arXiv:2410.01870)",
    {"r": 8},
    packed=(),
)

_adamss = Tuner(
    "adamss",
    "AdamssConfig",
    "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning (2025)",
    fit=lambda sizes: {"r": min(100, sizes.least)},
    packed=(),
)


def adamss(model: Any, **options: Any) -> Any:
    """AdaMSS: low-rank updates in clusters of the weights' singular space.

    The paper's pruning of subspaces goes by gradients, which forward passes do not give: all of
    them are kept.

    Raises:
        InputError: scikit-learn, which clusters them, is missing; or the pruning is asked for.
    """
    if options.get("use_asa"):
        raise input_error("peft adamss", "use_asa prunes by gradients", do="leave it out")
    if find_spec("sklearn") is None:
        raise input_error("peft adamss", "scikit-learn is missing", do="pip install scikit-learn")
    return _adamss(model, **options)
